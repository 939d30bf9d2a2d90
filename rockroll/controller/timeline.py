"""The time line of a run: its phases, its weights, and every episode, for RUN_DIR/trace.json.

In: the phases as they are entered, the rollout's events, weights as they are delivered. Out: spans and instants. Leaves
the file and its form to observe/trace.py.

    loop        phase ─ phase ─ phase …       and each delivery of weights as a line through all of it
    episodes    as many lanes as ran at once
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rockroll.controller.config import RecordsConfig
from rockroll.observe.trace import NAME, Lanes, Trace
from rockroll.rollout.sample import Episode, Event

_LOOP, _TRAIN, _EVAL = 1, 2, 3
_MB = 2**20


class Timeline:
    """Of one run; use as a context. What is under way at its end is written with its beginning until then."""

    def __init__(self, run_dir: Path, config: RecordsConfig) -> None:
        self._trace = Trace(run_dir / NAME, config.trace_mb * _MB)
        self._ahead = time.time() - time.monotonic()  # a clock that is set meanwhile bends no span
        self._lanes = {_TRAIN: Lanes(), _EVAL: Lanes()}
        self._phase, self._begun, self._step = "starting", self._now(), 0
        for number, name in ((_LOOP, "loop"), (_TRAIN, "episodes"), (_EVAL, "held-out episodes")):
            self._trace.process(number, name)
        self._trace.lane(_LOOP, 0, "phases")

    def phase(self, name: str, step: int) -> None:
        """The loop enters a phase; the one before is over."""
        now = self._now()
        self._trace.span(_LOOP, 0, self._phase, self._begun, now, {"step": self._step})
        self._phase, self._begun, self._step = name, now, step

    def delivered(self, version: int) -> None:
        """The engine has weights of that version; without an engine, the trainer."""
        for process in (_LOOP, _TRAIN):
            self._trace.instant(process, 0, f"weights {version}", self._now(), {"version": version})

    def beside(self, other: Callable[[Event], None]) -> Callable[[Event], None]:
        """Hears the events too."""
        if not self._trace.open:
            return other

        def on_event(event: Event) -> None:
            other(event)
            if event.kind == "finished" and event.episode is not None:
                self._ended(_EVAL if event.split == "eval" else _TRAIN, event.episode)

        return on_event

    def _ended(self, process: int, episode: Episode) -> None:
        now = self._now()
        begun = now - episode.duration_s
        lane, new = self._lanes[process].place(begun, now)
        if new:
            self._trace.lane(process, lane, f"lane {lane}")
        args: dict[str, Any] = {
            "id": episode.id,
            "task": episode.task,
            "seed": episode.seed,
            "outcome": episode.outcome,
            "cause": episode.cause,
            "reward": episode.reward,
            "turns": episode.turns,
            "tokens": episode.sampled,
            "spent_s": episode.spent_s,
        }
        self._trace.span(process, lane, f"group {episode.group}: {episode.outcome}", begun, now, args)

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.phase("ended", self._step)
        self._trace.close()
