"""When too many episodes go wrong by something other than the policy.

In: episodes, as they end. Out: an error with the most frequent cause and the end of its log, where their share is too
large. Pure. Leaves what a cause is to verdict.py, and how many replacements a batch may cost to group.py.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NoReturn

from rockroll.errors import AgentError, EnvError, RockrollError
from rockroll.rollout.sample import PASS, Episode

LEAST = 16
"""A window of fewer says nothing."""


class FailureRate:
    """share: of the last `window` episodes, so many may fail; 1: all of them. It judges full windows alone."""

    def __init__(self, share: float, window: int) -> None:
        self._share, self._window = share, max(window, LEAST)
        self._last: deque[Episode] = deque()
        self._failed = 0

    def check(self, episode: Episode) -> None:
        """Count one that ended by itself. EnvError, AgentError or RockrollError beyond the share."""
        self._last.append(episode)
        self._failed += _failed(episode)
        if len(self._last) > self._window:
            self._failed -= _failed(self._last.popleft())
        if len(self._last) == self._window and self._failed > self._share * self._window:
            self._stop()

    def _stop(self) -> NoReturn:
        failed = [each for each in self._last if _failed(each)]
        cause, times = Counter(each.cause for each in failed).most_common(1)[0]
        of_cause = [each for each in failed if each.cause == cause]
        detail, _ = Counter(each.detail for each in of_cause).most_common(1)[0]
        log = next((each.log for each in reversed(of_cause) if each.detail == detail and each.log), "")
        error = {"env": EnvError, "agent": AgentError}.get(str(cause), RockrollError)
        raise error(
            f"rollout failure_rate: {len(failed)} of the last {self._window} episodes of {failed[0].task} failed, more "
            f"than the share of {self._share}, {times} of them for {cause}; most often: {detail}"
            + (f"\nthe end of what it said:\n{log}" if log else "")
        )


def _failed(episode: Episode) -> bool:
    """By its task, its machinery, or an agent that broke; one that broke with its work done has not."""
    if episode.cause == "agent":
        return (episode.reward or 0.0) < PASS
    return episode.cause in ("env", "infra")
