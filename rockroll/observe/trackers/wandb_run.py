"""Weights & Biases, by its package.

In: rows. Out: a run of the project $WANDB_PROJECT, or `rockroll`; with WANDB_MODE=offline in RUN_DIR/track, for
`wandb sync`. Leaves account, server and mode to wandb's own variables and `wandb login`.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rockroll.errors import UsageError
from rockroll.observe.metrics import Row
from rockroll.observe.trackers import identity, numbers

_LOCAL = ("offline", "disabled", "dryrun")


def ready() -> None:
    """UsageError where it would have to ask for a key, which nobody could answer."""
    if os.environ.get("WANDB_MODE", "online") in _LOCAL or os.environ.get("WANDB_API_KEY"):
        return
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc().authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise UsageError(
            f"track: wandb has no key for {server}: run `wandb login`, set WANDB_API_KEY, or keep its files here with "
            "WANDB_MODE=offline"
        )


def open_run(folder: Path, name: str, recipe: Mapping[str, Any]) -> WandbRun:
    id, _ = identity(folder, "wandb")
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "rockroll"),
        name=os.environ.get("WANDB_NAME", name),
        id=os.environ.get("WANDB_RUN_ID", id),
        dir=str(folder),
        config=dict(recipe),
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    return WandbRun(run)


class WandbRun:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, row: Row) -> None:
        self._run.log(numbers(row), step=int(row["step"]))

    def close(self, ok: bool) -> None:
        """Offline, wandb's own process writes the last rows a moment later; at Python's end wandb waits for that."""
        self._run.finish(exit_code=0 if ok else 1)
