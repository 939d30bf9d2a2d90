"""Signals, as people name them.

In: "TERM", "SIGTERM", "15" or 15. Out: 15, or a UsageError. Leaves the sending to others.
"""

from __future__ import annotations

import signal

from rockroll.errors import UsageError


def number_of(name: str | int) -> int:
    """Of a signal that this kernel has."""
    text = str(name).strip().upper()
    if text.isdecimal() and len(text) < 4 and int(text) in signal.valid_signals():
        return int(text)
    try:
        return signal.Signals[text if text.startswith("SIG") else f"SIG{text}"].value
    except KeyError:
        raise UsageError(f"signal: a name or number, as in TERM, KILL or 15; got {name!r}") from None
