"""Text that somebody else chose, made fit for a terminal.

In: any text; bytes as a program in a sandbox printed them. Out: the same, harmless to print. Leaves what is said to the
callers.
"""

from __future__ import annotations

import codecs
import re
from typing import BinaryIO

from rockroll.logs import safe

# Colours, and erasing within the line, are kept; whatever else a terminal would obey is shown: its title, the clipboard
# (OSC 52), questions whose answers are typed into the user's shell, other character sets, moving over earlier lines.
_DRIVES = re.compile(r"(\x1b\[[0-9;:]*[mK])|[\x00-\x06\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,64})?$")
_PLAIN = b"\x1b[0m"
__all__ = ["Harmless", "Output", "safe", "safe_lines"]


def safe_lines(text: str) -> str:
    """The same for what may have several lines, as an error may."""
    return "\n".join(map(safe, text.split("\n")))


class Harmless:
    """A program's output for a terminal, piece by piece: text, colours and line ends as they are, the rest visible."""

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""
        self._coloured = False

    def feed(self, data: bytes) -> bytes:
        """What may be printed by now; a sequence that is cut at the end of `data` waits for its rest."""
        return self._show(self._text.decode(data))

    def end(self) -> bytes:
        """What is left; the terminal's own colours after it."""
        rest = self._show(self._text.decode(b"", True), whole=True)
        return rest + (_PLAIN if self._coloured else b"")

    def _show(self, text: str, whole: bool = False) -> bytes:
        text = self._held + text
        cut = None if whole else _UNFINISHED.search(text)
        end = cut.start() if cut else len(text)
        self._held = text[end:]
        return _DRIVES.sub(self._kept, text[:end]).encode()

    def _kept(self, found: re.Match[str]) -> str:
        if found[1]:
            self._coloured = True
            return found[1]
        return f"\\x{ord(found[0]):02x}"


class Output:
    """Where a program's output goes: to a terminal what is harmless, else, or with `raw`, every byte as it is."""

    def __init__(self, stream: BinaryIO, raw: bool) -> None:
        self._stream = stream
        self._filter = None if raw or not stream.isatty() else Harmless()

    def write(self, data: bytes) -> None:
        self._put(self._filter.feed(data) if self._filter else data)

    def end(self) -> None:
        """Once, after the last piece."""
        if self._filter:
            self._put(self._filter.end())

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()
