"""Numbers of each task, where a run has several.

In: the tasks, groups, episodes. Out: a metrics row's entries under NAME/TASK, beside the totals of statistics.py. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rockroll.controller.statistics import pass_rate
from rockroll.rollout.config import TaskConfig
from rockroll.rollout.mixture import Arm, Mixture
from rockroll.rollout.sample import Episode, Group

T = TypeVar("T")


def batch_row(tasks: Sequence[TaskConfig], groups: Sequence[Group], mixture: Mixture | None = None) -> dict[str, float]:
    """reward/mean/TASK, reward/pass_rate/TASK, groups/TASK of one training batch, for each of several tasks that is in
    it; tasks/benched; of a curriculum the share and the rate of each level. Empty where there is nothing to tell apart.
    """
    row: dict[str, float] = {}
    if len(tasks) > 1:
        for task in tasks:
            mine = [group for group in groups if group.task == task.label]
            row[f"groups/{task.label}"] = len(mine)
            episodes = [episode for group in mine for episode in group.episodes]
            if episodes:
                row[f"reward/mean/{task.label}"] = sum(e.reward or 0.0 for e in episodes) / len(episodes)
                row[f"reward/pass_rate/{task.label}"] = pass_rate(episodes)
        row["tasks/benched"] = len(mixture.benched) if mixture else 0
    if mixture is not None and mixture.curriculum:
        levels = {task.label: bool(task.levels) for task in tasks}
        for arm, share in mixture.shares.items():
            name = _name(arm, levels)
            row[f"curriculum/share/{name}"] = share
            if arm in mixture.rates:
                row[f"curriculum/pass_rate/{name}"] = mixture.rates[arm]
    return row


def _name(arm: Arm, levels: Mapping[str, bool]) -> str:
    return f"{arm.task}/{arm.level}" if levels[arm.task] else arm.task


def apart(
    tasks: Sequence[TaskConfig], episodes: Sequence[Episode], rated: Callable[[list[Episode]], T]
) -> dict[str, T]:
    """What `rated` says of each task's episodes, where there are several tasks; one without any is left out."""
    if len(tasks) < 2:
        return {}
    found = {task.label: [e for e in episodes if e.task == task.label] for task in tasks}
    return {name: rated(mine) for name, mine in found.items() if mine}


def said(row: Mapping[str, float]) -> list[str]:
    """The tasks' pass rates in a line of text."""
    prefix = "eval/pass_rate/"
    return [f"{name.removeprefix(prefix)} {rate:.0%}" for name, rate in row.items() if name.startswith(prefix)]
