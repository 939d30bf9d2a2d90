"""Which complete groups are worth training.

In: complete groups, and what the recipe keeps. Out: whether each is kept; RockrollError where nothing is any more.
Pure. Leaves what becomes of a filtered group's slot to stream.py: it is free at once, and another group begins.
"""

from __future__ import annotations

from rockroll.errors import RockrollError
from rockroll.rollout.config import RolloutConfig
from rockroll.rollout.sample import Group

IN_A_ROW = 32
"""Batches' worth of groups that may be filtered one after the other: then there is nothing left to learn, or nothing
that can be, and sampling on would never end."""


def varied(group: Group) -> bool:
    """Whether its episodes earned different rewards: else every advantage is 0 (DAPO's dynamic sampling, arXiv
    2503.14476, section 3.2)."""
    earned = {(episode.reward, *(each.reward for each in episode.agents)) for episode in group.episodes}
    return len(earned) > 1


class Filter:
    """Belongs to one run. batch: groups of a step."""

    def __init__(self, config: RolloutConfig, batch: int) -> None:
        self._config, self._batch = config, batch
        self._row: list[float] = []
        """Pass rates of the groups that were filtered since the last that was kept."""

    def __call__(self, group: Group) -> bool:
        """Raises RockrollError where so many in a row were not worth training that none will be."""
        if self._worth(group):
            self._row.clear()
            return True
        self._row.append(group.pass_rate)
        if len(self._row) > IN_A_ROW * self._batch:
            config = self._config
            what = config.keep if config.keep == "varied" else f"window {list(config.window)}"
            rate = sum(self._row) / len(self._row)
            raise RockrollError(
                f"rollout keep {what}: {len(self._row)} groups in a row were not worth training, their mean pass rate "
                f"is {rate:.2f}; give the task other levels, or keep: all"
            )
        return False

    def _worth(self, group: Group) -> bool:
        match self._config.keep:
            case "varied":
                return varied(group)
            case "window":
                low, high = self._config.window
                return low <= group.pass_rate <= high
        return True
