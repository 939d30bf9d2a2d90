"""What a person sees while a run goes on.

In: `Status`, which the controller keeps up to date. Out: live panes on a terminal, one plain line a step elsewhere.
Leaves measuring to the controller, and what stands where to panes.py: nothing here knows an episode from a step.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rockroll.logs import FORMAT, Lines
from rockroll.observe.panes import Panes
from rockroll.observe.status import Status as Status

_KEPT = 8
"""Lines of the log."""


class Display:
    """Shows a Status. `with Display(status): …`; `line` prints one lasting line."""

    def __init__(self, status: Status, console: Console | None = None) -> None:
        self.status = status
        self.console = console or Console()
        self._live: Live | None = None
        self._log = _Tail()

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            logging.getLogger().addHandler(self._log)
            panes = Panes(self.status, self._log.lines)
            self._live = Live(get_renderable=lambda: panes, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.stop()
            logging.getLogger().removeHandler(self._log)

    def line(self, text: str) -> None:
        """One line that stays, above the live panes."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Tail(logging.Handler):
    """The last lines of the log, without their date."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_KEPT)
        self.setFormatter(Lines(FORMAT, "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record).split("\n", 1)[0])


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
