"""Text that somebody else chose, made fit for a terminal.

In: any text. Out: the same, harmless to print. Leaves what is said to the callers.
"""

from __future__ import annotations


def safe(text: str) -> str:
    """Without the control characters that would drive this terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def safe_lines(text: str) -> str:
    """The same for what may have several lines, as an error may."""
    return "\n".join(map(safe, text.split("\n")))
