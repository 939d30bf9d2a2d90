"""Logs of rockroll's processes.

In: records, whose words may be a sandbox's (names of files, what a program said). Out: lines that neither drive the
terminal that shows them nor look like other records; files that stay within a bound. Leaves what is logged to
everybody.
"""

from __future__ import annotations

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

_FULL = 32 * 2**20
"""Bytes."""
_PART = 2**20
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def safe(text: str) -> str:
    """Without the control characters that would drive a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def begin(file: Path | None = None, most: int | None = _FULL) -> None:
    """From INFO on, to a file or to standard error; what was set up before is replaced. A file of `most` bytes becomes
    FILE.1, in place of the one that was; None: no bound."""
    handler = RotatingFileHandler(file, maxBytes=most or 0, backupCount=1) if file else logging.StreamHandler()
    handler.setFormatter(Lines(FORMAT))
    logging.raiseExceptions = False  # a line that a full disk did not take is lost; its traceback helps nobody
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def bound(file: Path, most: int) -> None:
    """Empties a file of more than `most` bytes that another process appends to (O_APPEND), whatever in it writes: its
    last `most` bytes become FILE.1. On a disk that cannot take them they are lost, and the run goes on."""
    if not file.exists() or file.stat().st_size <= most:
        return
    aside = file.with_name(f"{file.name}.tmp")
    with file.open("r+b", buffering=0) as log:
        try:
            with aside.open("wb", buffering=0) as kept:
                log.seek(max(0, os.fstat(log.fileno()).st_size - most))
                while part := log.read(_PART):  # to the end that it has by then: it may have moved on meanwhile
                    kept.write(part)
        except OSError:
            aside.unlink(missing_ok=True)
        log.truncate(0)
    if aside.exists():
        aside.replace(file.with_name(f"{file.name}.1"))


class Lines(logging.Formatter):
    """A message is one line; a traceback below it has its own, which begin with a space."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = safe(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return "\n".join(f" {safe(line)}" for line in super().formatException(ei).split("\n"))  # type: ignore[arg-type]
