"""What became of every training episode that ended, also of those that no batch holds.

In: events of the rollout; the groups of each batch. Out: a metrics row's entries: whose doing, how long, how much of it
for nothing. Pure. Leaves rewards and outcomes to statistics.py.

An episode that ended valid is undecided until its group is trained. One whose group was not taken while it could be
(max_staleness + 1 batches) was for nothing: its group was filtered, cancelled or not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rockroll.rollout.sample import CAUSES, Episode, Event, Group
from rockroll.rollout.verdict import TABLE

FAILURES = {
    happened for happened, row in TABLE.items() if row.cause and (row.score != "earned" or row.cause == "agent")
}
"""What is more than the end of a budget."""


class Tally:
    """Belongs to one run."""

    def __init__(self, max_staleness: int = 0) -> None:
        self._keep = max_staleness + 1
        self._undecided: list[dict[str, Episode]] = [{}]
        """By id, the last list since the last row."""
        self._causes: Counter[str] = Counter()
        self._happened: Counter[str] = Counter()
        self._wasted: list[Episode] = []

    def note(self, event: Event) -> None:
        """Of the rollout."""
        episode = event.episode
        if event.kind != "finished" or event.split != "train" or episode is None:
            return
        if episode.cause is not None:
            self._causes[episode.cause] += 1
        if episode.happened in FAILURES:
            self._happened[episode.happened] += 1
        if episode.valid:
            self._undecided[-1][episode.id] = episode
        else:
            self._wasted.append(episode)

    def row(self, groups: Sequence[Group]) -> dict[str, float]:
        """Since the last row: causes/*, failures/*, sandbox/*, length/*. groups: of the batch that is trained now.

        sandbox/busy_s are seconds for which episodes of agents held a box, sandbox/wasted_s those of them that no
        trained episode did. length/kept and length/wasted are mean sampled tokens of episodes trained and not.
        """
        kept = [episode for group in groups for episode in group.episodes]
        for episode in kept:
            for each in self._undecided:
                each.pop(episode.id, None)
        while len(self._undecided) > self._keep:
            self._wasted += self._undecided.pop(0).values()
        wasted, self._wasted = self._wasted, []
        self._undecided.append({})
        row: dict[str, float] = {f"causes/{cause}": self._causes[cause] for cause in CAUSES}
        row |= {f"failures/{what}": times for what, times in sorted(self._happened.items())}
        row["sandbox/busy_s"] = sum(map(_held, kept)) + sum(map(_held, wasted))
        row["sandbox/wasted_s"] = sum(map(_held, wasted))
        row["length/kept"] = _mean([episode.sampled for episode in kept])
        if wasted:
            row["length/wasted"] = _mean([episode.sampled for episode in wasted])
        self._causes.clear()
        self._happened.clear()
        return row


def _held(episode: Episode) -> float:
    """Seconds in a box: those of an agent, without its wait for one."""
    return episode.duration_s if "agent" in episode.spent_s else 0.0


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
