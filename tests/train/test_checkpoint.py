"""Exports and checkpoints: whole or refused, loadable by anyone, continued bit for bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rockroll.digest import Digest, digest_file
from rockroll.errors import TrainError
from rockroll.train import checkpoint, folder
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer
from tests.small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]

Batch = Callable[..., TrainBatch]
IDS = [5, 9, 33, 2, 2, 61]


def weights(trainer: RankTrainer) -> str:
    """A digest of all of them."""
    seen = Digest()
    for name, tensor in trainer.weights():
        seen.add(name, tensor)
    return seen.hex()


def transformers_logprobs(path: Path) -> list[float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([IDS])).logits[0, :-1], -1)
    return [float(logp[i, IDS[i + 1]]) for i in range(len(IDS) - 1)]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_export_loads_with_transformers_and_gives_the_same_logprobs(
    config: TrainConfig, batch: Batch, tmp_path: Path, stage: int
):
    trainer = RankTrainer(replace(config, zero_stage=stage))  # pyright: ignore[reportArgumentType]
    trainer.step(batch())
    exported = trainer.export(str(tmp_path / "v1"))
    assert exported is not None and exported.version == 1
    assert transformers_logprobs(tmp_path / "v1") == pytest.approx(trainer.logprobs(IDS), abs=1e-5)
    assert exported.digest == digest_file(tmp_path / "v1" / "model.safetensors")


def test_tied_embeddings_are_exported_once_and_the_tokenizer_comes_along(
    config: TrainConfig, model_path: Path, tmp_path: Path
):
    from safetensors import safe_open

    exported = RankTrainer(config).export(str(tmp_path / "out"))
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert exported is not None and exported.tensors == len(names)
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (model_path / name).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_an_export_replaces_the_last_one_and_leaves_nothing_beside_it(
    config: TrainConfig, batch: Batch, tmp_path: Path
):
    trainer = RankTrainer(config)
    first = trainer.export(str(tmp_path / "weights"))
    (tmp_path / "weights" / "stale").touch()
    trainer.step(batch())
    second = trainer.export(str(tmp_path / "weights"))
    assert first is not None and second is not None and first.digest != second.digest
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]
    assert not (tmp_path / "weights" / "stale").exists()


def test_an_export_that_cannot_be_written_says_where(config: TrainConfig, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=f"cannot export weights to {tmp_path}/file/out"):
        RankTrainer(config).export(str(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "stage", [0, 2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_two_steps_saved_and_loaded_and_two_more_are_bit_equal_to_four(
    config: TrainConfig, batch: Batch, tmp_path: Path, stage: int
):
    config = replace(config, zero_stage=stage, warmup_steps=4, minibatches=2, weight_decay=0.1)  # pyright: ignore[reportArgumentType]
    straight = RankTrainer(config)
    reports = [straight.step(batch(step)) for step in range(4)]

    before = RankTrainer(config)
    for step in range(2):
        before.step(batch(step))
    before.save(str(tmp_path / "step_2"))

    after = RankTrainer(config)
    assert after.load(str(tmp_path / "step_2")) == 2
    assert after.logprobs(IDS) == before.logprobs(IDS)
    for step in (2, 3):
        report = after.step(batch(step))
        same = {k: v for k, v in report.metrics.items() if not k.startswith("time/")}
        assert same == {k: v for k, v in reports[step].metrics.items() if not k.startswith("time/")}
        assert report.version == reports[step].version
    assert weights(after) == weights(straight)


def test_a_checkpoint_holds_a_model_that_transformers_loads(config: TrainConfig, batch: Batch, tmp_path: Path):
    trainer = RankTrainer(config)
    trainer.step(batch())
    trainer.save(str(tmp_path / "step_1"))
    assert transformers_logprobs(tmp_path / "step_1" / "model") == pytest.approx(trainer.logprobs(IDS), abs=1e-5)
    assert (tmp_path / "step_1" / "model" / "tokenizer.json").is_file()


@pytest.fixture
def saved(config: TrainConfig, tmp_path: Path) -> Path:
    RankTrainer(config).save(str(tmp_path / "step_0"))
    return tmp_path / "step_0"


def refused(config: TrainConfig, path: Path, says: str) -> None:
    trainer = RankTrainer(config)
    before = trainer.logprobs(IDS)
    with pytest.raises(TrainError, match=says):
        trainer.load(str(path))
    assert trainer.logprobs(IDS) == before


def test_a_half_written_checkpoint_is_refused(config: TrainConfig, saved: Path):
    (saved / "trainer.json").unlink()
    refused(config, saved, "no complete checkpoint: it has no trainer.json; use an earlier")


def test_a_checkpoint_with_a_file_cut_short_is_refused(config: TrainConfig, saved: Path):
    state = saved / "optimizer-0.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    refused(config, saved, f"{state.name} is not what was saved")


def test_a_checkpoint_with_one_flipped_bit_is_refused(config: TrainConfig, saved: Path):
    weights = saved / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(config, saved, "model.safetensors is not what was saved")


def test_a_checkpoint_with_a_file_missing_is_refused(config: TrainConfig, saved: Path):
    (saved / "rng-0.safetensors").unlink()
    refused(config, saved, "lacks rng-0.safetensors")


def test_a_record_that_cannot_be_read_is_refused(config: TrainConfig, saved: Path):
    (saved / "trainer.json").write_text('{"version": ')
    refused(config, saved, "trainer.json is damaged")


def test_nothing_is_there_under_the_name_until_all_of_it_is(tmp_path: Path):
    partial = folder.aside(tmp_path / "a")
    (partial / "x").write_text("1")
    assert not (tmp_path / "a").exists()
    again = folder.aside(tmp_path / "a")  # the first writer was killed
    assert list(again.iterdir()) == []
    (again / "y").write_text("2")
    folder.put(again, tmp_path / "a", durable=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "y").read_text() == "2"


def test_replacing_works_where_names_cannot_be_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "_exchange", lambda *_: False)
    for text in "12":
        partial = folder.aside(tmp_path / "a")
        (partial / "x").write_text(text)
        folder.put(partial, tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "x").read_text() == "2"


@pytest.mark.parametrize("stage", [0, 2])
def test_a_full_disk_leaves_the_checkpoint_before_it_and_says_what_to_free(
    config: TrainConfig, batch: Batch, small_disk: SmallDisk, stage: int
):
    trainer = RankTrainer(replace(config, zero_stage=stage))  # pyright: ignore[reportArgumentType]
    first, second, weights = (small_disk.path / name for name in ("step_1", "step_2", "weights"))
    trainer.save(str(first))
    trainer.export(str(weights))
    size = sum(file.stat().st_size for file in first.rglob("*"))
    trainer.step(batch())
    for room in (0, 4096, size // 3, size - 2 * 4096):
        small_disk.leave(room)
        with pytest.raises(
            TrainError, match=r"cannot save a checkpoint to .*step_2: its disk is full .* free some space"
        ):
            trainer.save(str(second))
        assert {each.name for each in small_disk.path.iterdir()} == {"step_1", "weights", "filler"}
    small_disk.leave(0)
    with pytest.raises(TrainError, match=r"cannot export weights to .*: its disk is full"):
        trainer.export(str(weights))
    checkpoint.read(first)
    small_disk.room()
    trainer.save(str(second))
    checkpoint.read(second)
