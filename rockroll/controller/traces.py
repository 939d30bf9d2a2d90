"""A trace an episode, of what the rollout tells, for OpenTelemetry.

In: the rollout's events. Out: for each ended episode a trace: the wait for its sandbox (the node), each turn (agent and
engine), and what came after the last answer (agent, grading). Leaves the sending to observe/otlp.py. Times are those
at which the controller heard of each.

    episode ────────────────────────────────
      sandbox ── turn 1 ── turn 2 ── ending
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rockroll.observe.otlp import Attributes, Spans
from rockroll.rollout.sample import Episode, Event


class Traces:
    """Hears a rollout's events. Where `spans` is None it hears nothing."""

    def __init__(self, spans: Spans | None) -> None:
        self._spans = spans
        self._heard: dict[str, list[tuple[str, float, Attributes]]] = {}
        """Episode → what ended when, the first entry its beginning."""

    def beside(self, other: Callable[[Event], None]) -> Callable[[Event], None]:
        """Hears the events too."""
        if self._spans is None:
            return other

        def on_event(event: Event) -> None:
            other(event)
            self._hear(event)

        return on_event

    def _hear(self, event: Event) -> None:
        now = time.time()
        if event.kind == "started":
            self._heard[event.id] = [("", now, {})]
        elif event.placed is not None and event.placed.id in self._heard:
            placed = event.placed
            told: Attributes = {"rockroll.sandbox": placed.sandbox, "rockroll.node": placed.node}
            self._heard[placed.id].append(("sandbox", now, told))
        elif event.kind == "turn" and event.id in self._heard:
            heard = self._heard[event.id]
            number = 1 + sum(name.startswith("turn") for name, _, _ in heard)
            heard.append((f"turn {number}", now, {"rockroll.tokens": event.tokens}))
        elif event.kind == "finished" and event.episode is not None:
            self._send(event.split, event.episode, self._heard.pop(event.episode.id, []), now)

    def _send(self, split: str, episode: Episode, heard: list[tuple[str, float, Attributes]], now: float) -> None:
        if self._spans is None or not heard:
            return
        ends = [*heard[1:], ("ending", now, {})]
        begins = [at for _, at, _ in heard]
        children = [(name, begun, ended, told) for begun, (name, ended, told) in zip(begins, ends, strict=True)]
        attributes: dict[str, str | int | float | bool] = {
            "rockroll.episode": episode.id,
            "rockroll.split": split,
            "rockroll.task": episode.task,
            "rockroll.seed": episode.seed,
            "rockroll.group": episode.group,
            "rockroll.outcome": episode.outcome,
            "rockroll.cause": episode.cause or "",
            "rockroll.turns": episode.turns,
            "rockroll.tokens": episode.sampled,
            **{f"rockroll.spent_s.{who}": seconds for who, seconds in episode.spent_s.items()},
        }
        if episode.reward is not None:
            attributes["rockroll.reward"] = episode.reward
        failed = "" if episode.valid else f"{episode.outcome}: {episode.detail}"
        self._spans.trace("episode", heard[0][1], now, attributes, failed=failed, children=children)
