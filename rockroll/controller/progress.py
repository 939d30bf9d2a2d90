"""What a run says while it goes on: phases and their seconds, episodes as they end, one line a step.

In: the loop's phases, events of the rollout, rows. Out: the display's status, time/* entries, text. Leaves showing it
to observe/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rockroll.controller import domains
from rockroll.observe.display import Status
from rockroll.observe.metrics import Row
from rockroll.rollout.sample import Episode, Event


class Phases:
    """Seconds by phase of one step."""

    def __init__(self, status: Status) -> None:
        self._status = status
        self._seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    @contextmanager
    def __call__(self, phase: str, wanted: int = 0) -> Iterator[None]:
        self._status.enter(phase, wanted)
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self._seconds[phase] = seconds
        self._status.times[phase] = self._status.times.get(phase, 0.0) + seconds

    def row(self) -> dict[str, float]:
        return {f"time/{k}_s": v for k, v in self._seconds.items()} | {"time/step_s": time.monotonic() - self._begun}


def status_events(status: Status, also: Callable[[Event], None] = lambda _: None) -> Callable[[Event], None]:
    """What the rollout tells, counted into the status. also: told too."""

    def on_event(event: Event) -> None:
        also(event)
        status.running = event.running
        if event.kind == "started":
            status.flights.began(event.id, event.task)
        elif event.placed is not None:
            status.flights.placed(event.placed.id, event.placed.sandbox, event.placed.node)
        elif event.kind == "turn":
            status.count_tokens(event.tokens)
            status.flights.answered(event.id, event.said)
        elif event.kind == "finished" and event.episode is not None:
            status.flights.ended(event.episode.id)
            count(event.episode)

    def count(episode: Episode) -> None:
        status.done += episode.valid
        status.outcomes[episode.outcome] = status.outcomes.get(episode.outcome, 0) + 1

    return on_event


def worst_case_line(row: Row) -> str:
    """The worst-case step in one line of text."""
    peaks = [f"{name} {row[key]:,.0f} MB" for name, key in _PEAKS.items() if key in row]
    return f"the longest batch, {row['memory/worst_case_tokens']:,.0f} tokens, fits: {', '.join(peaks)} at most"


_PEAKS = {"trainer": "memory/trainer_peak_mb", "critic": "memory/critic_peak_mb"}


def line(row: Row) -> str:
    """One step in one line of text."""
    said = [f"step {row['step']:>4}"]
    if "reward/mean" in row:
        said.append(f"reward {row['reward/mean']:.3f}")
        waited = "rollout" if "time/rollout_s" in row else "replay"
        said.append(
            f"{row['time/step_s']:.1f} s ({waited} {row[f'time/{waited}_s']:.1f}, train {row['time/train_s']:.1f})"
        )
        broken = sum(row[f"episodes/{name}"] for name in ("env_error", "infra_error"))
        if broken:
            said.append(f"{broken:.0f} broken episodes replaced")
    if "data/epoch" in row:
        name = next(name for name in ("loss/sft", "loss/dpo") if name in row)
        said.append(f"loss {row[name]:.4f}")
        said.append(f"{row['time/step_s']:.1f} s (data {row['time/data_s']:.1f}, train {row['time/train_s']:.1f})")
    if "eval/loss" in row:
        said.append(f"held-out loss {row['eval/loss']:.4f}")
    if "eval/pass_rate" in row:
        low, high = row["eval/ci95_low"], row["eval/ci95_high"]
        said.append(f"held out {row['eval/pass_rate']:.1%} (95 % interval {low:.1%} to {high:.1%})")
        said += domains.said(row)
    return "   ".join(said)
