"""When too many model calls cannot be trained.

In: valid episodes, as they end. Out: RockrollError with the reason, where their incomplete calls are too many. Pure.
Leaves what makes a call incomplete to dialogue.py and transcript.py.
"""

from __future__ import annotations

from collections import Counter, deque

from rockroll.errors import RockrollError
from rockroll.rollout.sample import Episode

ALWAYS = 8
"""So many may be incomplete whatever the share: a share of few calls says nothing."""


class Completeness:
    """The share of incomplete calls among those of the last `window` valid episodes."""

    def __init__(self, share: float, window: int) -> None:
        self._share, self._window = share, window
        self._episodes: deque[Episode] = deque()
        self._calls = 0
        self._incomplete: Counter[str] = Counter()

    def check(self, episode: Episode) -> None:
        """Count its calls. RockrollError beyond the share: one incomplete call in a while costs its tokens, many mean
        that the policy is not trained on what it did."""
        self._episodes.append(episode)
        self._calls += len(episode.record)
        self._incomplete.update(episode.incomplete)
        if len(self._episodes) > self._window:
            old = self._episodes.popleft()
            self._calls -= len(old.record)
            self._incomplete.subtract(old.incomplete)
        total = self._incomplete.total()
        if total > max(ALWAYS, self._share * self._calls):
            why, times = self._incomplete.most_common(1)[0]
            raise RockrollError(
                f"rollout incomplete: {total} of the last {self._calls} model calls cannot be trained, more than the "
                f"share of {self._share}; {times} times: {why}"
            )
