"""What may go wrong before a task is given up, and with the last task the run.

In: episodes of each task, as they end. Out: the error that ends it; which tasks are broken. Leaves the single limits to
group.Budget, failure_rate.py and completeness.py, and drawing other tasks instead to mixture.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NoReturn

from rockroll.errors import RockrollError
from rockroll.rollout.completeness import Completeness
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.domain import shares
from rockroll.rollout.failure_rate import FailureRate
from rockroll.rollout.group import Budget
from rockroll.rollout.mixture import Mixture
from rockroll.rollout.sample import Episode

_log = logging.getLogger(__name__)


class Guard:
    """Of one task. episodes: of it in a batch. window: whether what was long ago is forgotten."""

    def __init__(self, config: RolloutConfig, episodes: int, window: bool) -> None:
        self._budget = Budget(max(8, int(config.replacements * episodes)), episodes if window else None)
        self._rate = FailureRate(config.failure_rate, episodes) if window else None
        self._complete = Completeness(config.incomplete, episodes) if window else None
        self.broken = False
        """It was given up: nothing of it is tried any more."""

    def ended(self, episode: Episode) -> None:
        """Raises EnvError, AgentError or RockrollError where that was one too many."""
        if not episode.valid:
            self._budget.spend(episode)
        elif self._complete:
            self._complete.check(episode)
        if self._rate:
            self._rate.check(episode)

    def earn(self, episodes: int) -> None:
        """A group with so many valid episodes is complete."""
        self._budget.earn(episodes)

    def stop(self) -> NoReturn:
        """Raise the most frequent cause's error."""
        self._budget.stop()


class Guards:
    """One for each task. episodes: of a batch, or of the whole evaluation."""

    def __init__(
        self, config: RolloutConfig, tasks: Sequence[TaskConfig], episodes: int, *, window: bool = True
    ) -> None:
        part = shares(tasks)
        self._guards = {name: Guard(config, max(1, round(share * episodes)), window) for name, share in part.items()}

    def of(self, task: str) -> Guard:
        return self._guards[task]

    def bench(self, task: str, error: RockrollError, mixture: Mixture | None) -> bool:
        """The task cannot be run: go on with the others. False where it is the last that could. mixture: draws the
        others in its place; None: it is left out."""
        guard = self._guards[task]
        if guard.broken:
            return True
        if all(each.broken for name, each in self._guards.items() if name != task):
            return False
        if mixture is not None and not mixture.bench(task, str(error)):
            return False
        guard.broken = True
        _log.warning("task %s is given up, the others go on: %s", task, error)
        return True
