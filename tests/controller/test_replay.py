"""What a run recorded trains again as it did: without an engine, to the same weights."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rockroll.controller.batch import to_batch
from rockroll.controller.config import RunConfig
from rockroll.controller.records import Records
from rockroll.controller.replay import Recorded
from rockroll.errors import UsageError
from rockroll.recipe import changes
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.sample import Episode, Group, Sample, SampledTurn
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.train.config import TrainConfig
from tests.controller.toy import Run, config, rows, trained
from tests.rollout.conftest import write_model_folder

CLOCKED = ("sandbox/", "causes/", "failures/", "length/", "eval/", "canary/", "tokens/wasted")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: ChatTokenizer) -> Run:
    done = Run(config(max_staleness=1), tmp_path_factory.mktemp("runs") / "run", tokenizer)
    asyncio.run(done.go())
    return done


def replaying(run: Run, path: Path, **changed: object) -> Run:
    return Run(config(**{"max_staleness": 1, "replay": run.path} | changed), path, run.tokenizer)


def counted(path: Path) -> list[dict[str, object]]:
    """Rows, without what only sampling has."""
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in rows(path)]


async def test_a_replay_has_the_weights_rows_and_records_of_the_run(run: Run, tmp_path: Path) -> None:
    again = replaying(run, tmp_path / "again")
    await again.go()
    assert again.trainer.weights == run.trainer.weights and again.trainer.version == 7
    assert counted(again.path) == counted(run.path)
    assert trained(again.path) == trained(run.path)


async def test_a_replay_of_a_replay_is_one_too(run: Run, tmp_path: Path) -> None:
    once = replaying(run, tmp_path / "once")
    await once.go()
    twice = replaying(once, tmp_path / "twice")
    await twice.go()
    assert twice.trainer.weights == run.trainer.weights


async def test_a_replay_that_was_stopped_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    part = replaying(run, tmp_path / "part", steps=4)
    await part.go()
    rest = replaying(run, tmp_path / "part")
    await rest.go()
    assert rest.trainer.weights == run.trainer.weights
    assert [row["step"] for row in rows(rest.path)] == list(range(8))


@pytest.mark.parametrize("ahead", [0, 2])
async def test_what_was_sampled_without_a_trainer_trains(ahead: int, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    sampled = Run(config(max_staleness=ahead, steps=4), tmp_path / "sampled", tokenizer)
    assert await sampled.collect() == 16 and sampled.trainer.version == 0
    assert [row["step"] for row in rows(sampled.path)] == [1, 2, 3, 4]
    later = replaying(sampled, tmp_path / "later", steps=4)
    await later.go()
    assert later.trainer.version == 4 and trained(later.path) == trained(sampled.path)
    assert rows(later.path)[-1]["staleness/max"] == 3, "the versions are those that sampled, whatever is trained"


def stopping(work: Any, at: int) -> Any:
    """`work`, but for the call of that number, which raises."""
    calls = itertools.count(1)

    def wrapped(*args: Any) -> Any:
        if next(calls) == at:
            raise RuntimeError("stopped")
        return work(*args)

    return wrapped


async def test_sampling_that_was_stopped_goes_on_with_the_next_batch(
    tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(config(deterministic=True, steps=5), tmp_path / "whole", tokenizer)
    await whole.collect()
    for cls, name in ((Records, "trained"), (Ledger, "rotate")):  # before a batch's record, and after it
        path = tmp_path / name
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
            patch.setattr(cls, name, stopping(getattr(cls, name), at=3))
            await Run(whole.config, path, tokenizer).collect()
        await Run(whole.config, path, tokenizer).collect()
        assert trained(path) == trained(whole.path)
        assert [row["step"] for row in rows(path)] == [1, 2, 3, 4, 5]


async def test_a_data_set_is_not_sampled(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"this recipe learns from records \(replay\)"):
        await Run(config(replay="/r"), tmp_path / "run", tokenizer).collect()


def test_a_batch_comes_back_bit_for_bit(run: Run, tmp_path: Path) -> None:
    logprobs = [0.0, -1 / 3, -5e-324, -1.7976931348623157e308]
    turn = SampledTurn(0, 1, 4, "digest")
    sample = Sample([1, 2, 3, 4], [False, True, True, True], logprobs, [-1, 3, 3, 4], [turn])
    episode = Episode("e", "t", 2**60, 5, 0, "ok", None, 0.1 + 0.2, [sample, sample], 1, 0.1, turn_rewards=[1e-17])
    other = msgspec.structs.replace(episode, group=3, task="u", level=2)
    groups = [Group(5, "t", 2**60, [episode] * 2, 0), Group(3, "u", 2**60, [other], 0, level=2)]
    Records(tmp_path, config().records).trained(1, groups, [[(0, 1, 0.5)]] * 6)
    shutil.copy(run.path / "recipe.yaml", tmp_path)
    found = Recorded(config(replay=tmp_path, steps=1)).groups(1)
    assert found == groups
    assert to_batch(1, found, 0.7) == to_batch(1, groups, 0.7)


def test_what_is_not_there_is_said_before_anything_starts(run: Run, tmp_path: Path) -> None:
    def refused(told: str, **changed: object) -> None:
        with pytest.raises(UsageError, match=told):
            Recorded(config(**{"replay": run.path} | changed))

    refused("has no episodes/train-STEP.jsonl: name a run of", replay=tmp_path)
    refused("has no record of step 8; add --set steps=7", steps=9)
    refused("rollout.temperature is 0.5 and was 1.0 when .* add --set rollout.temperature=1.0", temperature=0.5)
    shutil.copytree(run.path / "episodes", tmp_path / "part" / "episodes")
    refused("replay needs .*recipe.yaml", replay=tmp_path / "part")
    (tmp_path / "part" / "episodes" / "train-000001.jsonl").unlink()
    refused("has no record of step 1; records.keep removed", replay=tmp_path / "part")


def test_a_damaged_record_is_named(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    (tmp_path / "copy" / "episodes" / "train-000002.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UsageError, match=r"train-000002.jsonl cannot be read: .*another rockroll"):
        Recorded(config(replay=tmp_path / "copy")).groups(2)


def test_a_data_set_is_not_replayed() -> None:
    with pytest.raises(ValueError, match="objective sft learns from a data set; leave one of them out"):
        dataclasses.replace(config(replay="/r"), train=TrainConfig(objective="sft"))


def test_a_resume_may_not_change_what_is_replayed() -> None:
    before: RunConfig = config(replay="/r")
    with pytest.raises(UsageError, match="replay was /r and is /other now: its batches are the recorded ones"):
        changes.check(changes.changes(before, config(replay="/other")), done=0)
