"""trackio, by its package: local first, looked at with `trackio show`.

In: rows. Out: a run of the project `rockroll` in trackio's folder ($TRACKIO_DIR says which), or on the server or Space
that trackio's own variables name. Leaves showing it to trackio.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rockroll.observe.metrics import Row
from rockroll.observe.trackers import flat, identity, numbers


def open_run(folder: Path, name: str, recipe: Mapping[str, Any]) -> TrackioRun:
    id, _ = identity(folder, "trackio")
    import trackio  # pyright: ignore[reportMissingImports]

    run = trackio.init(
        "rockroll",
        name=f"{name}-{id}",  # a project's runs are told apart by name alone
        config=flat(recipe),
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return TrackioRun(run)


class TrackioRun:
    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, row: Row) -> None:
        self._run.log(numbers(row), step=int(row["step"]))

    def close(self, ok: bool) -> None:
        self._run.finish()
