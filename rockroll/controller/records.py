"""What a run keeps of its episodes.

In: the rollout's events, and each step's groups with what the trainer made of them. Out: records in RUN_DIR/episodes/
(trained, held-out, and discarded ones at once, so that a run that dies of them has them), and RUN_DIR/running/. Leaves
files to observe/, and what is in an Episode to the rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from rockroll.controller.agents import compared
from rockroll.controller.config import RecordsConfig
from rockroll.observe.record import EpisodeLog
from rockroll.observe.running import Running
from rockroll.rollout.sample import Episode, Event, Group

Spans = list[tuple[int, int, float]]


class Records:
    """The records of one run. `step` is the one under way: what is discarded meanwhile is filed there."""

    def __init__(self, run_dir: Path, config: RecordsConfig) -> None:
        self.step = 0
        self._log, self._running, self._config = EpisodeLog(run_dir, config.most()), Running(run_dir), config
        self._kept: dict[tuple[int, bool], int] = {}
        """How many discarded ones are kept, by step and by whether they were only cancelled."""

    def beside(self, other: Callable[[Event], None]) -> Callable[[Event], None]:
        """Hears the events too."""

        def on_event(event: Event) -> None:
            other(event)
            self._heard(event)

        return on_event

    def trained(self, step: int, groups: Sequence[Group], advantages: Sequence[Spans]) -> None:
        """A step was trained. advantages: by sample, in the order of groups, episodes and branches; may be empty."""
        told = iter(advantages)
        records: list[dict[str, Any]] = []
        for group in groups:
            kept = compared(group)
            for episode in group.episodes:
                record = msgspec.structs.asdict(episode)
                if advantages:
                    record["advantages"] = [next(told) if one.agent in kept else [] for one in episode.samples]
                    if not (episode.samples or episode.agents):
                        next(told)  # the trainer had a sample for its reward alone
                records.append(record)
        self._log.write("train", step, records)

    def evaluated(self, step: int, episodes: list[Episode]) -> None:
        self._log.write("eval", step, episodes)

    def _heard(self, event: Event) -> None:
        if event.placed is not None:
            self._running.began(event.placed.id, event.placed)
        elif event.kind == "finished" and event.episode is not None:
            if event.episode.sandbox:
                self._running.ended(event.episode.id)
            if not event.episode.valid:
                self._discard(event.episode)

    def _discard(self, episode: Episode) -> None:
        """Cancelled ones are kept apart, so that a redundant run's many do not push the broken ones out."""
        kind = (self.step, episode.outcome == "cancelled")
        kept = self._kept.get(kind, 0)
        if kept < self._config.discarded:
            self._kept = {key: n for key, n in self._kept.items() if key[0] == self.step} | {kind: kept + 1}
            self._log.add("discarded", self.step, episode)
