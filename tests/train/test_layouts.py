"""A checkpoint goes on in another layout: other ranks, another ZeRO stage, another dtype."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rockroll.errors import TrainError
from rockroll.train import checkpoint
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.shard_file import Saved
from rockroll.train.trainer import RankTrainer

from .layout_worker import Work, work

WORKER = Path(__file__).with_name("layout_worker.py")
Batch = Callable[..., TrainBatch]


def run(given: Work) -> dict[str, dict[str, float]]:
    """The work in this process for one rank, in processes for more."""
    if given.train.ranks == 1:
        return work(given, 0)
    file = Path(given.folder) / f"work-{len(list(Path(given.folder).iterdir()))}"
    rendezvous = f"file://{file}.rendezvous"
    file.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(given, train=replace(given.train, rendezvous=rendezvous)))
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(file), str(rank)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(given.train.ranks)
    ]
    try:
        errors = [rank.communicate(timeout=200)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # where one took too long, or failed while the other waits for it
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(errors)
    return msgspec.json.decode(file.with_suffix(".found").read_bytes())


def state(checkpoint: Path) -> dict[str, Tensor]:
    """float32 weights and moments by name, whole, as the files of all ranks hold them together."""
    record = msgspec.json.decode((checkpoint / "trainer.json").read_bytes())
    with Saved(sorted(checkpoint.glob("optimizer-*.safetensors"))) as saved:
        return {
            f"{key}/{parameter}": saved.read(key, parameter, 0, torch.Size(shape).numel())
            for parameter, shape in record["parameters"].items()
            for key in ("weight", "exp_avg", "exp_avg_sq")
        }


def equal(a: Path, b: Path) -> bool:
    one, other = state(a), state(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def apart(a: Path, b: Path) -> float:
    """The largest difference of any weight."""
    one, other = state(a), state(b)
    return max(float((one[k] - other[k]).abs().max()) for k in one if k.startswith("weight/"))


def goes_on(folder: Path, found: dict[str, dict[str, float]]) -> None:
    """What was loaded is what was saved, bit for bit; so is the next step in the same layout, and elsewhere it differs
    by no more than sums do that are added up in another order: three units in the last place of a weight near 1, where
    the step itself is 0.01."""
    for title, metrics in found.items():
        source, _, layout = title.partition(" > ")
        assert equal(folder / source, folder / title), title
        unbroken = folder / f"{source} > {source} + 1"
        if unbroken.is_dir():
            moved = apart(folder / source, unbroken)
            difference = apart(unbroken, folder / f"{title} + 1")
            assert moved > 5e-3 and difference <= (0.0 if layout == source else 3.6e-7), (title, difference)
            assert metrics["loss/grad_norm"] == pytest.approx(found[f"{source} > {source}"]["loss/grad_norm"], rel=1e-6)


def layouts(config: TrainConfig, batch: Batch, folder: Path) -> Work:
    config = replace(config, weight_decay=0.1, tokens_per_microbatch=200)
    return Work(train=config, batches=[batch(n) for n in range(3)], begin=[], go_on=[], folder=str(folder))


@pytest.mark.timeout(240)
def test_one_rank_goes_on_as_two_and_two_as_one_at_another_stage(config: TrainConfig, batch: Batch, tmp_path: Path):
    one = layouts(config, batch, tmp_path)
    two = msgspec.structs.replace(one, train=replace(one.train, ranks=2))
    change = msgspec.structs.replace
    found = run(change(one, begin=[0, 2], go_on=[(0, "1-0-float32"), (2, "1-2-float32")]))
    stages = [(3, "1-0-float32"), (1, "1-2-float32"), (2, "2-3-float32"), (3, "2-3-float32")]
    found |= run(change(two, begin=[3], go_on=stages))
    found |= run(change(one, go_on=[(0, "2-3-float32"), (3, "1-0-float32")]))
    goes_on(tmp_path, found)
    assert len(found) == 8


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_any_layout_goes_on_in_any_other(config: TrainConfig, batch: Batch, tmp_path: Path):
    one = layouts(config, batch, tmp_path)
    two = msgspec.structs.replace(one, train=replace(one.train, ranks=2))
    every = [(stage, f"{r}-{s}-float32") for stage in range(4) for r, s in product((1, 2), range(4))]
    run(msgspec.structs.replace(one, begin=[0, 1, 2, 3]))
    found = run(msgspec.structs.replace(two, begin=[0, 1, 2, 3], go_on=every))
    found |= run(msgspec.structs.replace(one, go_on=every))
    goes_on(tmp_path, found)
    assert len(found) == 64


def test_bfloat16_goes_on_as_float32_and_back_with_nothing_rounded(config: TrainConfig, batch: Batch, tmp_path: Path):
    given = layouts(config, batch, tmp_path)
    low = msgspec.structs.replace(given, train=replace(given.train, dtype="bfloat16", zero_stage=1))
    found = run(msgspec.structs.replace(given, begin=[0]))
    found |= run(msgspec.structs.replace(low, begin=[2], go_on=[(1, "1-0-float32"), (3, "1-2-bfloat16")]))
    found |= run(msgspec.structs.replace(given, go_on=[(0, "1-2-bfloat16")]))
    goes_on(tmp_path, found)
    rounded = load_file(tmp_path / "1-0-float32 > 1-1-bfloat16" / "model" / "model.safetensors")
    whole = load_file(tmp_path / "1-0-float32" / "model" / "model.safetensors")
    assert all(torch.equal(rounded[name], whole[name].bfloat16()) for name in whole)


def test_parameters_of_another_model_are_refused(config: TrainConfig, tmp_path: Path):
    RankTrainer(config).save(str(tmp_path / "a"))
    record = json.loads((tmp_path / "a" / "trainer.json").read_bytes())
    record["parameters"]["model.norm.weight"] = [33]
    (tmp_path / "a" / "trainer.json").write_text(json.dumps(record))
    with pytest.raises(TrainError, match=r"of another model: model.norm.weight is \[33\] there, \[32\] here"):
        RankTrainer(config).load(str(tmp_path / "a"))


def test_a_checkpoint_of_an_earlier_format_is_refused(config: TrainConfig, tmp_path: Path):
    RankTrainer(config).save(str(tmp_path / "a"))
    record = json.loads((tmp_path / "a" / "trainer.json").read_bytes())
    (tmp_path / "a" / "trainer.json").write_text(json.dumps(record | {"format": 1}))
    with pytest.raises(TrainError, match=r"has format 1, this rockroll reads 2; start a run from .*/a/model"):
        RankTrainer(config).load(str(tmp_path / "a"))


def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_the_trainer_as_it_was(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = RankTrainer(config)
    monkeypatch.setattr(checkpoint, "write_shards", full)
    with pytest.raises(TrainError, match=r"cannot save a checkpoint to .*/a: its disk is full \(No space left"):
        trainer.save(str(tmp_path / "a"))
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    trainer.save(str(tmp_path / "a"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
