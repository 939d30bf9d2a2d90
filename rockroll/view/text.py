"""Text that somebody else chose, made fit to be looked at.

In: text of sandboxes, models and tasks. Out: the same with what cannot be seen made visible, and no longer than a page
bears. Leaves escaping to the templates, which escape everything.
"""

from __future__ import annotations

_KEPT = "\n\t"
_UNSEEN = [
    *(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _KEPT),
    0x00AD,  # soft hyphen
    0x061C,
    *range(0x200B, 0x2010),  # zero width, and marks that turn the direction of what follows
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
]
_SHOWN = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _UNSEEN}
MOST = 20_000
"""Characters of one text on a page."""


def visible(text: str) -> str:
    """Control characters, and those that hide or reorder others, as escapes: what is read is what is there."""
    return text.replace("\r\n", "\n").translate(_SHOWN)


def shortened(text: str, most: int = MOST) -> str:
    """Beginning and end, where it is longer."""
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]}\n… {len(text) - most:,} characters are left out here …\n{text[-most // 4 :]}"
