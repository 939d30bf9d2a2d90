"""The live terminal of a run: a Status as panes, for any width and height.

In: a Status, the lines of the log, the time. Out: what Rich draws. Pure: nothing is asked, counted or waited for, and
what a sandbox or a model said cannot drive the terminal. Leaves when it is drawn to display.py.

    wide, from 100 columns       run        │ episodes under way, with the last command of each
                                 curve      │
                                 engines    │ sandboxes by node
                                 log
    middle, from 60              the same below one another; what the height has no room for is left out from the end
    narrow                       lines without frames
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rockroll.logs import safe
from rockroll.observe.flights import Flight
from rockroll.observe.status import Status

WIDE, MIDDLE = 100, 60
"""Columns."""
_MOST = 40
"""Lines at most, however tall the terminal is."""
_CURVE = 5
"""Lines of the curve."""
_LOG = 3
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Panes:
    """A Status, drawn to fit where it is printed."""

    status: Status
    log: Sequence[str] = ()
    """Lines, the newest last."""
    now: float | None = None
    """Seconds of time.monotonic; None: when it is drawn."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = time.monotonic() if self.now is None else self.now
        yield layout(self.status, self.log, now, options.max_width, (options.height or console.height) - 1)


def layout(status: Status, log: Sequence[str], now: float, width: int, height: int) -> RenderableType:
    """The panes for a terminal of `width` columns, in at most `height` lines."""
    rows = max(1, min(height, _MOST))
    if width < MIDDLE or rows < 3:
        return _narrow(status, log, now, width, rows)
    if width < WIDE:
        return Group(*_below_one_another(status, log, now, width, rows))
    inner = width // 2 - 4
    said = _said(log, _LOG)
    upper = rows - (len(said) + 2 if said and rows >= 16 else 0)
    facts, engines, nodes = _facts(status, now, inner), _engines(status), _nodes(status)
    below = max(len(engines), len(nodes))
    curve = _curve(status.curve, inner) if upper >= len(facts) + _CURVE + 1 + below + 4 else []
    fits = upper >= len(facts) + len(curve) + below + 4
    run = facts + curve
    tall = min(len(run), max(1, upper - 2))
    beside = _episodes(status.flights.all(), now, inner, tall)
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    title, clock = _title(status, now)
    grid.add_row(_pane(title, run[:tall], clock, tall), _pane("episodes", beside, "", tall))
    if fits:
        grid.add_row(_pane("engines", engines, "", below), _pane("sandboxes", nodes, "", below))
    return Group(grid, _pane("log", said)) if upper < rows else grid


def _below_one_another(
    status: Status, log: Sequence[str], now: float, width: int, rows: int
) -> Iterator[RenderableType]:
    inner, left = width - 4, rows
    title, clock = _title(status, now)
    flights = status.flights.all()
    panes: tuple[tuple[str, int, Callable[[int], list[Text]]], ...] = (
        (title, 1, lambda most: _facts(status, now, inner)),
        ("reward", _CURVE + 1, lambda most: _curve(status.curve, inner)),
        ("episodes", 1, lambda most: _episodes(flights, now, inner, min(most, 8))),
        ("engines", 1, lambda most: _engines(status)),
        ("sandboxes", 1, lambda most: _nodes(status)),
        ("log", 1, lambda most: _said(log, _LOG)),
    )
    for name, least, of in panes:
        if left < least + 2 or not (lines := of(left - 2)[: left - 2]):
            continue
        left -= len(lines) + 2
        yield _pane(name, lines, clock if name == title else "")


def _title(status: Status, now: float) -> tuple[str, str]:
    return f"rockroll · {safe(status.name)}", _clock(now - status.started)


def _pane(title: str, lines: Sequence[Text], subtitle: str = "", height: int | None = None) -> Panel:
    return Panel(
        Text("\n", no_wrap=True, overflow="ellipsis").join(lines),
        title=Text(title),
        subtitle=subtitle or None,
        title_align="left",
        height=None if height is None else height + 2,
    )


def _narrow(status: Status, log: Sequence[str], now: float, width: int, rows: int) -> RenderableType:
    lines = [Text(safe(status.name), style="bold") + Text(f" {_clock(now - status.started)}")]
    lines += _facts(status, now, width)
    lines += _episodes(status.flights.all(), now, width, 4)
    lines += [Text.assemble(("engines ", "bold"), line) for line in _engines(status)]
    lines += [Text.assemble(("sandboxes ", "bold"), line) for line in _nodes(status)[:1]]
    lines += _said(log, 1)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True, overflow="ellipsis").join(lines[:rows])


def _facts(status: Status, now: float, width: int) -> list[Text]:
    progress = f" {status.done}/{status.wanted} episodes" if status.wanted else ""
    last = f"{status.curve[-1]:.2f}" if status.curve else "-"
    spark = sparkline(status.curve, max(4, min(48, width - 15)))
    rows = [
        ("step", Text(f"{status.step}/{status.steps} {safe(status.phase)}{progress}")),
        ("reward", Text(f"{spark} {last}".strip(), style="green")),
        ("held out", Text("  ".join(f"step {step}: {rate:.0%}" for step, rate in status.evals[-3:]))),
        ("episodes", Text("  ".join(f"{name} {n}" for name, n in list(status.outcomes.items()) if n) or "none yet")),
        ("time", Text("  ".join(f"{name} {seconds:.0f} s" for name, seconds in list(status.times.items())) or "-")),
        ("now", Text(f"{status.running} running  {status.tokens_per_s:,.0f} tokens/s")),
    ]
    return [Text.assemble((f"{name:10}", "bold"), value) for name, value in rows if name != "held out" or status.evals]


def _curve(values: Sequence[float], width: int) -> list[Text]:
    """The reward of every step so far, in bars of eight parts, each the mean of the steps that it stands for."""
    if len(values) < 2:
        return []
    low, high = min(0.0, *values), max(1.0, *values)
    columns = min(width - 6, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    parts = [max(1, round((mean - low) / (high - low) * _CURVE * 8)) for mean in means]
    lines = []
    for row in range(_CURVE - 1, -1, -1):
        label = f"{high:5.2f}" if row == _CURVE - 1 else f"{low:5.2f}" if row == 0 else " " * 5
        bars = "".join(_BARS[min(8, max(0, part - 8 * row))] for part in parts)
        lines.append(Text.assemble((label, "dim"), " ", (bars, "green")))
    lines.append(Text(f"{'':5} step 1 to {len(values)}", style="dim"))
    return lines


def _episodes(flights: Sequence[Flight], now: float, width: int, rows: int) -> list[Text]:
    """The oldest first: those hold the step up. At most so many lines."""
    if len(flights) > rows == 1:
        return [Text(f"{len(flights)} under way")]
    shown = flights if len(flights) <= rows else flights[: rows - 1]
    lines = []
    for flight in shown:
        what = _first_line(flight.said) if flight.said else "begins" if flight.sandbox or not flight.turns else ""
        line = Text.assemble(
            (f"{_clock(now - flight.began):>5} ", "dim"), safe(flight.id), (f" {flight.turns}× ", "dim"), what
        )
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if len(shown) < len(flights):
        lines.append(Text(f"and {len(flights) - len(shown)} more", style="dim"))
    return lines or [Text("none under way", style="dim")]


def _engines(status: Status) -> list[Text]:
    counts = status.engines()
    if not counts:
        return [Text("none", style="dim")]
    said = f"{counts.get('engine/replicas', 0):.0f} serving"
    if restarts := counts.get("engine/restarts"):
        said += f"  restarted {restarts:.0f}  asked again {counts.get('engine/reissued', 0):.0f}"
    return [Text(f"{said}  weights {status.version}")]


def _nodes(status: Status) -> list[Text]:
    nodes = sorted(status.flights.by_node().items())
    return [Text(f"{safe(node)} {count}") for node, count in nodes] or [Text("none at work", style="dim")]


def _said(log: Sequence[str], rows: int) -> list[Text]:
    return [Text(safe(line), style="yellow" if " WARNING " in line else "") for line in list(log)[-rows:]]


def sparkline(values: Sequence[float], width: int = 48) -> str:
    """Numbers in 0 … 1 as bars, the last `width` of them."""
    return "".join(_BARS[min(8, max(0, round(v * 8)))] for v in values[-width:])


def _first_line(said: str) -> str:
    """Of an answer, as one harmless line."""
    lines = [line for line in said[:1000].splitlines() if line.strip()]
    return safe(lines[0].strip()) + (" …" if len(lines) > 1 else "") if lines else ""


def _clock(seconds: float) -> str:
    whole = max(0, math.floor(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
