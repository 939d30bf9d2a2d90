"""`rockroll:handover`: a job for two agents. The asker leaves a note, the solver works with what stands in it.

In: a seed and a split. Out: a situation with a part for the agents `asker` and `solver`, and a reward for each: the
asker's is 1 where the note says what it should, the solver's where the note's last word is in the file it was told to
write. Leaves how the note gets from one to the other to the recipe: one sandbox, or the solver's `takes`.

Both goals are of `rockroll:shell` (create, extract), said in its words. The solver cannot earn anything without the
asker, and is not paid for guessing: the word is in the note alone. One agent alone does both, for one reward.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rockroll.env.api import Part, Situation, Split
from rockroll.env.shell import draw_names, split_of
from rockroll.env.shell_words import PHRASES, WORDS
from rockroll.errors import FileError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

ASKER, SOLVER = "asker", "solver"


@dataclass(frozen=True)
class Files:
    """What is to be there afterwards. Never enters a sandbox."""

    note: str
    says: bytes
    result: str
    holds: bytes


class HandoverTask:
    """A `SandboxTask` for a team of an `asker` and a `solver`: in one sandbox, or the solver in the recipe's second."""

    def situation(self, seed: int, split: Split) -> Situation:
        """The situation of that seed. ValueError for a split other than train and eval."""
        if split not in ("train", "eval"):
            raise ValueError(f"split is train or eval; got {split!r}")
        rng = random.Random(f"rockroll:handover {split} {seed}")
        while True:
            situation = _draw(rng)
            if split_of(situation) == split:
                return situation

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        """Of one agent alone: 1.0 where both files are right."""
        return min((await self.grade_team({"main": sandbox}, situation)).values())

    async def grade_team(self, sandboxes: Mapping[str, Sandbox], situation: Situation) -> dict[str, float]:
        """The note is looked for in the first sandbox, what the solver wrote in the last."""
        files: Files = situation.secret
        first, *_, last = [*sandboxes.values()] * 2
        return {
            ASKER: float(await _read(first, situation.path(files.note)) == files.says),
            SOLVER: float(await _read(last, situation.path(files.result)) == files.holds),
        }


async def _read(sandbox: Sandbox, path: str) -> bytes | None:
    """None where it is not there: one agent's doing must not cost the other."""
    try:
        return await sandbox.read_file(path)
    except FileError:
        return None


def _draw(rng: random.Random) -> Situation:
    note, result = draw_names(rng, 2)
    first, last = rng.sample(WORDS, 2)
    asked = rng.choice(PHRASES["create"]).format(file=note, first=first, last=last)
    told = rng.choice(PHRASES["extract"]).format(file=note, other=result)
    return Situation(
        instruction=f"{asked} {told}",
        parts={ASKER: Part(instruction=asked), SOLVER: Part(instruction=told)},
        secret=Files(note, f"{first} {last}\n".encode(), result, f"{last}\n".encode()),
    )
