"""One group: as many valid episodes of one task and seed as GRPO is to compare.

In: episodes as they end, in any order. Out: what to start, whether the group is complete, and the Group. Pure: no
I/O, no clock, no tasks. Leaves running and cancelling to runner.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from rockroll.errors import AgentError, EnvError, RockrollError
from rockroll.rollout.sample import Episode, Group


@dataclass(frozen=True)
class Start:
    """An episode to be started: its place in the group, and how many were started in that place before."""

    index: int
    attempt: int


GIVE_UP = 4
"""A group may lose so many episodes to its environment, or as many as it has, before it is not tried further: a
situation that always breaks must not cost the run its budget."""


class GroupState:
    """The life of one group.

    open ── begin: n + extra started ──► open ── n valid ended ──► complete: cancel what still runs ──► result
                                          │  ▲
      an episode ended without a reward ──┘  └── and fewer than n are valid or running: another in its place
    """

    def __init__(self, id: int, task: str, seed: int, n: int, extra: int = 0, level: int = 0) -> None:
        if n < 1 or extra < 0:
            raise ValueError(f"a group has at least one episode, and none or more extra; got {n} and {extra}")
        self.id, self.task, self.seed, self.level = id, task, seed, level
        self._n, self._extra = n, extra
        self._running: dict[int, int] = {}
        """Attempt by index, of the episodes that were started and have not ended."""
        self._valid: list[Episode] = []
        self._kept: list[Episode] = []
        self._wasted = 0
        self._broken = 0
        self._discarded: Counter[str] = Counter()
        self._incomplete: Counter[str] = Counter()

    @property
    def complete(self) -> bool:
        """There are n valid episodes."""
        return len(self._valid) >= self._n

    @property
    def running(self) -> list[int]:
        """Indices of the episodes that were started and have not ended."""
        return list(self._running)

    def keep(self, episodes: Sequence[Episode]) -> None:
        """Before it begins: episodes of this group that ended before the run was stopped, in that order."""
        self._kept = list(episodes)

    def begin(self) -> list[Start]:
        """The first n + extra episodes, but for those that were kept; others in place of kept ones without a reward."""
        if self._running or self._valid:
            raise ValueError("a group begins once")
        self._running = dict.fromkeys(range(self._n + self._extra), 0)
        for episode in self._kept:
            if episode.index in self._running:
                self.end(episode)
        if self.complete:
            self._running = {}
        return [Start(index, attempt) for index, attempt in sorted(self._running.items())]

    def end(self, episode: Episode) -> Start | None:
        """An episode ended; the one to start in its place, if it is needed."""
        if episode.index not in self._running:
            raise ValueError(f"episode {episode.index} of group {self.id} ended, which was not running")
        attempt = self._running.pop(episode.index)
        self._incomplete.update(episode.incomplete)
        self._wasted += episode.thrown
        if episode.valid and not self.complete:
            self._valid.append(episode)
            return None
        self._discarded[episode.outcome if not episode.valid else "cancelled"] += 1
        self._broken += episode.cause in ("env", "agent") and not episode.valid
        self._wasted += episode.sampled
        if len(self._valid) + len(self._running) >= self._n:
            return None
        self._running[episode.index] = attempt + 1
        return Start(episode.index, attempt + 1)

    def cancelled(self, index: int, sampled: int) -> None:
        """An episode was cancelled after it had sampled so many tokens."""
        self._running.pop(index)
        self._discarded["cancelled"] += 1
        self._wasted += sampled

    @property
    def ended(self) -> Counter[str]:
        """How many episodes have ended, or were cancelled, by outcome."""
        return self._discarded + Counter(episode.outcome for episode in self._valid)

    @property
    def spent_tokens(self) -> int:
        """Sampled tokens of every episode that has ended."""
        return self._wasted + sum(episode.sampled for episode in self._valid)

    @property
    def hopeless(self) -> bool:
        """Its situation breaks whatever is tried: too many episodes were spoiled by the task or the agent."""
        return self._broken > max(GIVE_UP, self._n)

    def restart(self, task: str, level: int, seed: int) -> None:
        """Begin anew with another situation, when nothing of it runs any more. What it had is waste."""
        if self._running:
            raise ValueError(f"group {self.id} has {len(self._running)} running: cancel them first")
        self.task, self.level, self.seed = task, level, seed
        for episode in self._valid:
            self._discarded["cancelled"] += 1
            self._wasted += episode.sampled
        self._valid, self._broken = [], 0

    def result(self) -> Group:
        """The complete group, in the order of index, when nothing of it runs any more."""
        if not self.complete or self._running:
            raise ValueError(f"group {self.id} has {len(self._valid)} of {self._n} and {len(self._running)} running")
        episodes = sorted(self._valid, key=lambda e: e.index)
        discarded, incomplete = dict(self._discarded), dict(self._incomplete)
        return Group(self.id, self.task, self.seed, episodes, self._wasted, discarded, incomplete, self.level)


class Budget:
    """How many episodes env, agent and infrastructure may spoil before the run stops.

    limit: of them, while `window` valid ones ended; window None: since the beginning.
    """

    def __init__(self, limit: int, window: int | None = None) -> None:
        self._limit, self._window = limit, window
        self._valid = 0
        self._spoiled: list[tuple[int, Episode]] = []
        """With the number of valid ones that had ended before."""

    def earn(self, episodes: int) -> None:
        """So many valid ones have ended."""
        self._valid += episodes

    def spend(self, episode: Episode) -> None:
        """Count one that ended without a reward; beyond the limit raise the most frequent cause's error."""
        since = 0 if self._window is None else self._valid - self._window
        self._spoiled = [(at, each) for at, each in self._spoiled if at >= since] + [(self._valid, episode)]
        if len(self._spoiled) > self._limit:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise the most frequent cause's error."""
        spoiled = [each for _, each in self._spoiled]
        causes = Counter(e.cause for e in spoiled)
        cause, times = causes.most_common(1)[0]
        detail, _ = Counter(e.detail for e in spoiled if e.cause == cause).most_common(1)[0]
        error = {"env": EnvError, "agent": AgentError}.get(str(cause), RockrollError)
        many = f"more than {self._limit}" if len(spoiled) > self._limit else f"{len(spoiled)}"
        raise error(
            f"rollout replacements: {many} episodes of this batch could not be scored, {times} of "
            f"{len(spoiled)} for {cause}; most often: {detail}"
        )
