"""What `rockroll sandbox` prints: tables for people, JSON for programs.

In: rows, or what the node has told of a sandbox or a snapshot. Out: lines on standard output, harmless to a terminal,
without what people keep secret. Leaves asking for it to the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rockroll.cli.text import safe

if TYPE_CHECKING:
    from rockroll.sandbox.wire import SandboxInfo, SnapshotInfo


def public(info: SandboxInfo) -> dict[str, Any]:
    """A sandbox as JSON; its environment stays out, since people put secrets there."""
    import msgspec

    fields = msgspec.structs.asdict(info)
    del fields["env"]
    return fields


def public_snapshot(info: SnapshotInfo) -> dict[str, Any]:
    """As public."""
    import msgspec

    fields = msgspec.structs.asdict(info)
    fields["config"] = {key: value for key, value in info.config.items() if key != "env"}
    return fields


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))  # ASCII: a control character in a label comes out escaped


def age(created: float) -> str:
    import time

    seconds = max(0, int(time.time() - created))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def print_table(header: list[str] | None, rows: list[list[str]]) -> None:
    """Columns as wide as their widest cell, nothing cut: what is piped into another program stays whole."""
    lines = [[safe(cell) for cell in row] for row in ([header] if header else []) + rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
