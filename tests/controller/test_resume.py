"""A run that is killed at any moment goes on as if it had not been: nothing lost, nothing twice, nothing bent.

The moments are the records of the ledger and the rows: what is on disk does not change between two of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rockroll.observe.metrics import MetricsLog
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.tokenizer import ChatTokenizer
from tests.controller.toy import Run, config, rows, trained
from tests.rollout.conftest import write_model_folder


@pytest.fixture(autouse=True)
def _no_loss_of_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy disk a run of these would mostly wait for it."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_model_folder(tmp_path_factory.mktemp("model")))


class Moments:
    """Copies of a run's directory as it stands before each thing that it notes."""

    def __init__(self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> None:
        self.run, self.folder, self.made, self.most = run, folder, [], most
        for cls, name in ((Ledger, "put"), (Ledger, "rotate"), (MetricsLog, "write")):
            monkeypatch.setattr(cls, name, self._copied(getattr(cls, name)))

    def _copied(self, work: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            if self.run is not None and len(self.made) < self.most:
                copy = self.folder / f"{len(self.made):04}"
                shutil.copytree(self.run.path, copy)
                self.made.append(copy)
            return work(*args)

        return wrapped

    def stop(self) -> list[Path]:
        self.run = None
        return self.made


async def moments(changes: dict[str, Any], tmp_path: Path, tokenizer: ChatTokenizer, patch: pytest.MonkeyPatch) -> Any:
    whole = Run(config(**changes), tmp_path / "whole", tokenizer)
    copies = Moments(whole, tmp_path, patch)
    await whole.go()
    return whole, copies.stop()


EVERY = [pytest.param(1, marks=pytest.mark.slow, id="every moment"), pytest.param(15, id="some")]
IN_TURNS = {"sync": {}, "no checkpoint": {"every": 0}, "filtered": {"keep": "varied"}}
IN_ORDER = {
    "one ahead": {"max_staleness": 1, "deterministic": True},
    "two ahead, filtered": {"max_staleness": 2, "deterministic": True, "keep": "varied"},
}


@pytest.mark.parametrize("nth", EVERY)
@pytest.mark.parametrize("kind", [*IN_TURNS, *IN_ORDER])
async def test_it_ends_with_the_same_weights_and_rows_whenever_it_was_killed(
    kind: str, nth: int, tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = (IN_TURNS | IN_ORDER)[kind]
    whole, killed = await moments(changes, tmp_path, tokenizer, monkeypatch)
    assert len(killed) > 50
    if kind in IN_ORDER:
        assert max(row.get("staleness/max", 0) for row in rows(whole.path)) == changes["max_staleness"]
    for path in killed[len(kind) % nth :: nth]:
        again = Run(config(**changes), path, tokenizer)
        await again.go()
        assert again.trainer.weights == whole.trainer.weights, path
        assert rows(path) == rows(whole.path), path
        assert trained(path) == trained(whole.path), path


@pytest.mark.parametrize("nth", EVERY)
@pytest.mark.parametrize("on_stale", ["wait", "drop"])
async def test_ahead_every_task_is_trained_once_within_its_bound(
    on_stale: str, nth: int, tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"max_staleness": 2, "on_stale": on_stale}
    whole, killed = await moments(changes, tmp_path, tokenizer, monkeypatch)
    for path in killed[::nth]:
        await Run(config(**changes), path, tokenizer).go()
        assert [row["step"] for row in rows(path)] == list(range(8)), path
        assert max(row.get("staleness/max", 0) for row in rows(path)) <= 2, path
        once = [each[1:] for each in trained(path)]
        assert len(set(once)) == len(once) == 7 * 2 * 2, path
        if on_stale == "wait":
            assert sorted(once) == sorted(each[1:] for each in trained(whole.path)), path


async def test_it_may_be_killed_again_and_again(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each resume is stopped in its turn, a few records after the one before."""
    changes = {"max_staleness": 1, "deterministic": True, "every": 4}
    whole, killed = await moments(changes, tmp_path, tokenizer, monkeypatch)
    path = killed[5]
    for times in range(12):
        again = Run(config(**changes), path, tokenizer)
        copies = Moments(again, tmp_path / f"{times}", monkeypatch, most=12)
        await again.go()
        made = copies.stop()
        if len(made) < 12:
            break
        path = made[11]
    assert times > 3, "it was killed several times"
    assert (rows(again.path), trained(again.path)) == (rows(whole.path), trained(whole.path))


@pytest.mark.parametrize("bound", [0, 2])
async def test_kept_groups_that_a_changed_recipe_cannot_train_in_time_are_begun_anew(
    bound: int, tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, killed = await moments({"max_staleness": 2}, tmp_path, tokenizer, monkeypatch)
    for path in killed[40::19]:
        await Run(config(max_staleness=bound, groups=1, steps=10), path, tokenizer).go()
        once = [each[1:] for each in trained(path)]
        assert len(set(once)) == len(once) and max(row.get("staleness/max", 0) for row in rows(path)[-3:]) <= bound


async def test_short_episodes_are_not_favoured(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the episodes under way the long ones are those that a death interrupts. Begun again with their own seeds they
    are the same ones; were they drawn anew, as the second half does on purpose, part of them would come out short."""
    changes = {"groups": 6, "episodes": 8, "steps": 1, "max_tokens": 40}
    whole, killed = await moments(changes, tmp_path, tokenizer, monkeypatch)
    begun = len(killed) // 2

    async def length(path: Path, *, anew: bool) -> float:
        run = Run(config(**changes), path, tokenizer)
        if anew:
            run.engine.draw = lambda request: (path.name, request.seed)
        await run.go()
        return rows(path)[1]["tokens/sampled"]

    kept = killed[begun : begun + 12]
    copies = [shutil.copytree(path, tmp_path / f"anew-{path.name}") for path in kept]
    assert {await length(path, anew=False) for path in kept} == {rows(whole.path)[1]["tokens/sampled"]}
    unbent = [await length(tmp_path / f"unbent-{path.name}", anew=True) for path in kept]
    anew = [await length(path, anew=True) for path in copies]
    assert sum(anew) < 0.95 * sum(unbent)


async def test_an_earlier_checkpoint_does_as_well(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    whole = Run(config(checkpoints=3), tmp_path / "whole", tokenizer)
    await whole.go()
    before = rows(whole.path)
    for gone in ((7,), (6, 7)):
        for step in gone:
            shutil.rmtree(whole.path / "checkpoints" / f"step_{step}")
        again = Run(config(checkpoints=3), whole.path, tokenizer)
        await again.go()
        assert again.trainer.weights == whole.trainer.weights and rows(whole.path) == before


@pytest.mark.parametrize("times", [pytest.param(30, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("mode", [{}, {"max_staleness": 1, "deterministic": True}], ids=["sync", "ahead"])
def test_processes_killed_at_random_moments(mode: dict[str, Any], times: int, tmp_path: Path) -> None:
    """SIGKILL, wherever the process is. A run that ends before it is killed so often is followed by another."""
    options = mode | {"pause": 0.002, "steps": 12, "model": str(write_model_folder(tmp_path / "model"))}
    draw = random.Random(times)

    def begin(path: Path) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "tests.controller.toy", str(path), json.dumps(options)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        return process

    began = time.monotonic()
    whole = begin(tmp_path / "whole")
    assert whole.communicate(timeout=100) and whole.returncode == 0
    lasts = min(time.monotonic() - began, 10.0)
    killed = runs = 0
    while killed < times:
        path = tmp_path / f"{runs}"
        runs += 1
        for left in range(times - killed, -1, -1):
            process = begin(path)
            try:
                process.communicate(timeout=draw.uniform(0, lasts / 3) if left else 100)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                killed += 1
                continue
            assert process.returncode == 0
            break
        assert rows(path) == rows(tmp_path / "whole")
        assert trained(path) == trained(tmp_path / "whole")
        weights = [each / "checkpoints" / "step_12" / "weights" for each in (path, tmp_path / "whole")]
        assert weights[0].read_text() == weights[1].read_text()
