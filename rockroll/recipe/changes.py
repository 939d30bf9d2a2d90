"""What of its recipe a run may change when it is continued.

In: the recipe that the run was begun with and the one that it would go on with. Out: the changes, or a UsageError that
says why one of them cannot be. Pure. Leaves loading what was saved under other ranks, stage or dtype to train/.

May change: how and where the work is done, and how weights are updated from here on. May not: what would make the
steps before and after it two different runs, the tasks and their order, the weights' own shape, the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from rockroll.controller.config import RunConfig
from rockroll.errors import UsageError
from rockroll.recipe.load import dump

_MAY = (
    "name",
    "steps",
    "agent",
    "sandbox",
    "engine",
    "train",
    "eval",
    "canary",
    "checkpoint",
    "records",
    "track",
    "metrics",
)
_MAY_IN = {
    "rollout": (
        *("concurrency", "replacements", "failure_rate", "incomplete", "journal", "journal_keep"),
        *("episode_timeout", "stall_timeout", "on_update"),
    )
}
_MAY_NOT: dict[str, str] = {
    "model": "the checkpoint's weights are of the other model",
    "replay": "its batches are the recorded ones, one a step",
    "seed": "every task and every draw comes from it",
    "train.lora.dropout": "",
    "train.lora": "the checkpoint's adapter has the other form",
    "train.objective": "what was learnt until here was another loss",
    "train.teacher": "what was learnt until here was another loss",
    "": "the run's place among its tasks is that of the other setting",
}
"""The first that fits counts: a key or the section it is in -> why; no reason: it may."""


@dataclass(frozen=True)
class Change:
    """One key that is not what it was; None: it was or is left out."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {_told(self.before)} → {_told(self.after)}"


def changes(before: RunConfig, after: RunConfig) -> list[Change]:
    """Every key that differs, in the recipe's order."""
    old, new = _flat(yaml.safe_load(dump(before))), _flat(yaml.safe_load(dump(after)))
    return [Change(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def check(found: list[Change], *, done: int) -> None:
    """Raises UsageError for a change that a continued run cannot have. done: steps of its last checkpoint."""
    for change in found:
        if why := _why_not(change.key):
            raise UsageError(
                f"--resume: {change.key} was {_told(change.before)} and is {_told(change.after)} now: {why}; set it "
                "back, or begin a new run from a checkpoint's model/"
            )
        if change.key == "steps" and change.after < done:
            raise UsageError(f"--resume: steps is {change.after} now, and the run has done {done}; set more")


def _why_not(key: str) -> str:
    section, _, field = key.partition(".")
    for fixed, why in _MAY_NOT.items():
        if fixed and (key == fixed or key.startswith(f"{fixed}.")):
            return why
    if section in _MAY or field.partition(".")[0] in _MAY_IN.get(section, ()):
        return ""
    return _MAY_NOT[""]


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found


def _told(value: Any) -> str:
    return "left out" if value is None else str(value)
