"""Situations of `rockroll:handover`: a part for each of two agents, and the grade of each."""

from __future__ import annotations

from typing import Any

import pytest

from rockroll.env import registry
from rockroll.env.api import SandboxTask
from rockroll.env.handover import ASKER, SOLVER, HandoverTask
from rockroll.env.shell import split_of
from rockroll.errors import FileError

TASK = HandoverTask()


class Folder:
    """What `grade_team` asks of a sandbox."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    async def read_file(self, path: str) -> bytes:
        name = path.removeprefix("/work/")
        if name not in self.files:
            raise FileError(f"{path}: no such file")
        return self.files[name]


def test_a_seed_is_one_situation_and_the_splits_share_none() -> None:
    assert isinstance(registry.make("rockroll:handover"), SandboxTask)
    for seed in range(100):
        assert TASK.situation(seed, "train") == HandoverTask().situation(seed, "train")
        assert split_of(TASK.situation(seed, "train")) == "train" and split_of(TASK.situation(seed, "eval")) == "eval"
    with pytest.raises(ValueError, match="train or eval; got 'test'"):
        TASK.situation(0, "test")  # type: ignore[arg-type]


def test_the_solver_is_told_where_to_look_and_not_what_stands_there() -> None:
    for seed in range(50):
        situation = TASK.situation(seed, "train")
        asked, told = situation.parts[ASKER].instruction, situation.parts[SOLVER].instruction
        assert asked and told and situation.secret.note in asked and situation.secret.note in told
        for word in situation.secret.says.decode().split():
            assert word in asked and word not in told


async def test_each_is_graded_by_its_own_file_in_its_own_sandbox() -> None:
    situation = TASK.situation(3, "train")
    secret = situation.secret
    note, result = {secret.note: secret.says}, {secret.result: secret.holds}

    async def grades(*folders: Folder) -> tuple[float, float]:
        sandboxes: dict[str, Any] = dict(zip(("main", "desk"), folders, strict=False))
        found = await TASK.grade_team(sandboxes, situation)
        return found[ASKER], found[SOLVER]

    assert await grades(Folder(**note), Folder(**result)) == (1.0, 1.0)
    assert await grades(Folder(**note), Folder()) == (1.0, 0.0)
    assert await grades(Folder(**{secret.note: b"other\n"}), Folder(**result)) == (0.0, 1.0)
    assert await grades(Folder(**note, **result)) == (1.0, 1.0), "in one sandbox"
    assert await TASK.grade(Folder(**note), situation) == 0.0, "one agent alone does both"  # type: ignore[arg-type]
