"""Situations of `rockroll:shell`, and their grading in a real sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll import Sandbox, SandboxConfig
from rockroll.env import registry
from rockroll.env.api import SandboxTask, Situation
from rockroll.env.shell import KINDS, Goal, ShellTask, split_of
from rockroll.sandbox import node_client
from rockroll.tiny.warmup import HABITS, SOLUTIONS

TASK = ShellTask()


def test_it_is_found_by_its_name() -> None:
    assert isinstance(registry.make("rockroll:shell"), SandboxTask)


def test_a_seed_is_one_situation() -> None:
    assert TASK.situation(3, "train") == ShellTask().situation(3, "train")
    assert TASK.situation(3, "train") != TASK.situation(4, "train")


def test_the_splits_share_no_situation() -> None:
    for seed in range(500):
        assert split_of(TASK.situation(seed, "train")) == "train"
        assert split_of(TASK.situation(seed, "eval")) == "eval"


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train or eval; got 'test'"):
        TASK.situation(0, "test")  # type: ignore[arg-type]


def test_every_kind_of_goal_is_a_fifth_of_the_draw() -> None:
    drawn = Counter(TASK.situation(seed, "train").secret.kind for seed in range(4000))
    assert set(drawn) == set(KINDS) and len(KINDS) == 5
    assert all(700 < count < 900 for count in drawn.values()), drawn


def test_there_are_more_than_a_hundred_thousand_situations() -> None:
    # Were there only 100,000, some 180 of 6,000 draws would meet an earlier one.
    seen = {repr(TASK.situation(seed, "train")) for seed in range(6000)}
    assert len(seen) > 5980


def test_the_goal_names_files_that_share_no_letter() -> None:
    for seed in range(200):
        situation = TASK.situation(seed, "train")
        letters = "".join({*situation.files, *situation.secret.expected})
        assert len(set(letters)) == len(letters)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(node_home: Path) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxConfig(memory="64m", pids=64)) as sandbox:
        yield sandbox
    await node_client.close_node()


def each_kind() -> list[Situation]:
    """One situation of every kind."""
    found: dict[str, Situation] = {}
    for seed in range(100):
        situation = TASK.situation(seed, "eval")
        found.setdefault(situation.secret.kind, situation)
    return list(found.values())


async def graded(box: Sandbox, situation: Situation, commands: str) -> float:
    await box.arun(f"rm -rf {situation.cwd}; mkdir -p {situation.cwd}")
    for name, data in situation.files.items():
        await box.write_file(situation.path(name), data)
    done = await box.arun(f"(cd {situation.cwd}\n{commands}\n)", timeout=10)
    assert done.outcome == "ok"
    return await TASK.grade(box, situation)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_solves_a_goal_earns_one_and_its_bad_habit_nothing(box: Sandbox) -> None:
    for situation in each_kind():
        goal: Goal = situation.secret
        assert await graded(box, situation, "\n".join(SOLUTIONS[goal.kind](goal))) == 1.0, goal
        assert await graded(box, situation, "\n".join(HABITS[goal.kind](goal))) == 0.0, goal
        assert await graded(box, situation, "true") == 0.0, goal


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "besides",
    [
        "touch .hidden",
        "mkdir empty",
        "for f in *; do mv $f aside; ln -s aside $f; break; done",
        "for f in *; do rm $f; mkdir $f; break; done",
        "for f in *; do printf x >> $f; break; done",
        "rm *",
        "rm -rf $PWD",
        "d=$PWD; rm -rf $d; ln -s /etc $d",
        "d=$PWD; rm -rf $d; echo > $d",
    ],
)
async def test_nothing_else_may_have_changed(box: Sandbox, besides: str) -> None:
    situation = each_kind()[0]
    solution = "\n".join(SOLUTIONS[situation.secret.kind](situation.secret))
    assert await graded(box, situation, f"{solution}\n{besides}") == 0.0


@pytest.mark.asyncio(loop_scope="module")
async def test_another_way_to_the_same_state_earns_one_too(box: Sandbox) -> None:
    follow = next(s for s in each_kind() if s.secret.kind == "follow")
    assert await graded(box, follow, f'rm "$(< {follow.secret.file})"') == 1.0
