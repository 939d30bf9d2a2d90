"""What a person sees while a run goes on.

In: `Status`, which the controller keeps up to date. Out: a live Rich panel on a terminal, one plain line a step
elsewhere. Leaves measuring to the controller: nothing here knows an episode from a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class Status:
    """The state of a run, as numbers."""

    name: str
    steps: int
    step: int = 0
    phase: str = "starting"
    started: float = field(default_factory=time.monotonic)
    curve: list[float] = field(default_factory=list)
    """Mean training reward of every step so far."""
    evals: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out pass rate)."""
    outcomes: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, summed."""
    done: int = 0
    """Episodes ended in this phase."""
    wanted: int = 0
    """Episodes that this phase needs."""
    running: int = 0
    sandboxes: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    phase_started: float = field(default_factory=time.monotonic)
    on_phase: Callable[[str, int], None] = lambda phase, step: None
    """Told of every phase and its step as it begins."""

    def enter(self, phase: str, wanted: int = 0) -> None:
        """A new phase begins: its counters start at zero."""
        self.on_phase(phase, self.step)
        self.phase, self.wanted, self.done, self.tokens = phase, wanted, 0, 0
        self.phase_started = time.monotonic()

    def count_tokens(self, n: int) -> None:
        """n more tokens were sampled."""
        self.tokens += n
        self.tokens_per_s = self.tokens / max(time.monotonic() - self.phase_started, 1e-3)


class Display:
    """Shows a Status. `with Display(status): …`; `line` prints one lasting line."""

    def __init__(self, status: Status, console: Console | None = None) -> None:
        self.status = status
        self.console = console or Console()
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=lambda: render(self.status), console=self.console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """One line that stays, above the live panel."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def render(status: Status) -> RenderableType:
    """The panel, as it is now."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    progress = f"{status.done}/{status.wanted} episodes" if status.wanted else ""
    facts.add_row("step", f"{status.step}/{status.steps}   {status.phase} {progress}")
    facts.add_row("reward", Text(f"{sparkline(status.curve)}  {_last(status.curve)}", style="green"))
    if status.evals:
        facts.add_row("held out", "   ".join(f"step {step}: {rate:.0%}" for step, rate in status.evals[-4:]))
    facts.add_row("episodes", "  ".join(f"{name} {n}" for name, n in status.outcomes.items() if n) or "none yet")
    facts.add_row("time", "  ".join(f"{name} {seconds:.0f} s" for name, seconds in status.times.items()) or "-")
    facts.add_row("now", f"{status.sandboxes} sandboxes  {status.running} running  {status.tokens_per_s:,.0f} tokens/s")
    clock = time.strftime("%M:%S", time.gmtime(time.monotonic() - status.started))
    return Group(Panel(facts, title=f"rockroll · {status.name}", subtitle=clock, title_align="left"))


def sparkline(values: list[float], width: int = 48) -> str:
    """Numbers in 0 … 1 as bars, the last `width` of them."""
    return "".join(_BARS[min(8, max(0, round(v * 8)))] for v in values[-width:])


def _last(values: list[float]) -> str:
    return f"{values[-1]:.2f}" if values else "-"


def summary(rows: list[tuple[str, str]], title: str) -> Callable[[Console], None]:
    """The end: what came out, where it lies, what to type next. `rows`: (name, value); "" goes on from the row above.

    Values stand on one line whatever the terminal's width: they are paths and commands, to be copied.
    """

    def show(console: Console) -> None:
        console.rule(title, align="left")
        for name, value in rows:
            console.print(Text.assemble((f"{name:20}", "bold"), value), soft_wrap=True)
        console.rule()

    return show
