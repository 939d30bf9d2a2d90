"""Logs of rockroll's processes.

In: records, whose words may be a sandbox's (names of files, what a program said). Out: lines that neither drive the
terminal that shows them nor look like other records. Leaves what is logged to everybody.
"""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

_FULL = 32 * 2**20
"""Bytes."""
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def safe(text: str) -> str:
    """Without the control characters that would drive a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def begin(file: Path | None = None) -> None:
    """From INFO on, to a file or to standard error; what was set up before is replaced. Of a file that is full, the
    one before, FILE.1, goes."""
    handler = RotatingFileHandler(file, maxBytes=_FULL, backupCount=1) if file else logging.StreamHandler()
    handler.setFormatter(Lines(FORMAT))
    logging.raiseExceptions = False  # a line that a full disk did not take is lost; its traceback helps nobody
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class Lines(logging.Formatter):
    """A message is one line; a traceback below it has its own, which begin with a space."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = safe(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return "\n".join(f" {safe(line)}" for line in super().formatException(ei).split("\n"))  # type: ignore[arg-type]
