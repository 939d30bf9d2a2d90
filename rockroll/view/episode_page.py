"""The page of one episode, served or taken away as a single file.

In: where its record lies. Out: HTML: a conversation, its tokens, its group, and for a broken one what the logs said
meanwhile. Leaves reading the record to episodes.py and taking it apart to trajectory.py.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from rockroll.view import logs, trajectory
from rockroll.view.episodes import BROKEN, Episodes
from rockroll.view.render import render
from rockroll.view.runs import Run, Runs
from rockroll.view.text import shortened, visible
from rockroll.view.trajectory import WINDOW, Branch
from rockroll.view.vocabulary import Vocabularies

EXPORTED = 50_000
"""Tokens of a branch in a single file."""
_SHOWN = {
    *("id", "task", "seed", "group", "index", "outcome", "cause", "reward", "samples", "turns", "duration_s", "detail"),
    *("turn_rewards", "record", "began_at", "sandbox", "node", "advantages", "agents", "happened", "level"),
    "log",
}
"""Fields that have a place on the page. Any other is shown under its name."""


OF_SHELLS = ("rockroll:shell", "rockroll:handover")
"""Tasks whose answers are commands: what follows one is what it printed."""


@dataclass(frozen=True)
class Place:
    """One episode of one run."""

    run: Run
    row: sqlite3.Row

    @property
    def path(self) -> str:
        return f"{self.row['file'].removesuffix('.jsonl')}/{self.row['line']}"


class EpisodePages:
    def __init__(self, runs: Runs, vocabularies: Vocabularies) -> None:
        self._runs, self._vocabularies = runs, vocabularies

    def page(self, place: Place, branch: int, start: int) -> str:
        """branch, start: which branch, and its first token on the page."""
        values = self._values(place)
        found: list[Branch] = values.pop("found")
        at = branch if 0 <= branch < len(found) else 0
        chosen = [self._shown(place, values["record"], i, each, start) for i, each in enumerate(found) if i == at]
        return render("episode.jinja", runs=self._runs, watched="", branches=chosen, at=at, of=len(found), **values)

    def export(self, place: Place) -> str:
        """Every branch on one page that needs nothing else."""
        values = self._values(place)
        found: list[Branch] = values.pop("found")
        shown = [self._shown(place, values["record"], i, each, 0, EXPORTED) for i, each in enumerate(found)]
        return render("export.jinja", branches=shown, at=0, of=len(found), **values)

    def _values(self, place: Place) -> dict[str, Any]:
        run, row = place.run, place.row
        record = Episodes(run).record(row)
        if record is None:
            raise HTTPException(404, "this record has just been replaced; the list of episodes has the new one")
        broken = row["outcome"] in BROKEN
        words = self._vocabularies.of(run)
        began = row["began"] or 0.0
        return {
            "title": row["id"],
            "run": run,
            "row": row,
            "place": place,
            "record": record,
            "found": (found := trajectory.branches(record)),
            "whose": [visible(branch.agent) for branch in found],
            "missing": words.missing,
            "group": Episodes(run).group(row) if row["split"] == "train" else [],
            "said": logs.around(run, began, began + row["duration"]) if broken and began else [],
            "broken": broken,
            "others": {
                name: shortened(visible(value if isinstance(value, str) else json.dumps(value, indent=1)))
                for name, value in record.items()
                if name not in _SHOWN and value not in (None, "", [], {})
            },
        }

    def _shown(
        self, place: Place, record: dict[str, Any], number: int, branch: Branch, start: int, window: int = WINDOW
    ) -> dict[str, Any]:
        words = self._vocabularies.of(place.run)
        total = len(branch.ids)
        start = max(0, min(start, total - 1)) // window * window
        return {
            "number": number,
            "agent": visible(branch.agent),
            "total": total,
            "trained": sum(branch.mask),
            "start": start,
            "end": min(total, start + window),
            "window": window,
            "versions": branch.shown_versions,
            "advantages": bool(branch.advantages),
            "blocks": trajectory.conversation(branch, words, record, commands=place.run.task in OF_SHELLS),
            "tokens": trajectory.tokens(branch, words, start, start + window),
        }
