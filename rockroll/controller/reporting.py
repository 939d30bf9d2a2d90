"""Where the rows of a run go beside its directory: trackers, and Prometheus.

In: a RunConfig, a run directory, a display. Out: a function that takes each row and returns at once; at the end all is
sent. Leaves each place to a file in observe/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rockroll.controller.config import RunConfig
from rockroll.controller.run_dir import RunDir
from rockroll.observe import trackers
from rockroll.observe.display import Display
from rockroll.observe.metrics import Row
from rockroll.observe.prometheus import Exporter


def require(config: RunConfig) -> None:
    """UsageError where a tracker's package is not installed, or a tracker could not log in. Starts nothing."""
    trackers.require(config.track)


@contextmanager
def reporting(config: RunConfig, run: RunDir, display: Display) -> Iterator[Callable[[Row], None]]:
    """HostError, before anything is started, where Prometheus' address cannot be listened at."""
    with (
        Exporter(config.metrics, config.name, display.status) as exporter,
        trackers.Trackers(config.track, run.path, name=config.name, say=display.line) as tracked,
    ):

        def also(row: Row) -> None:
            exporter.write(row)
            tracked.write(row)

        if exporter.url:
            display.line(f"metrics: {exporter.url}")
        yield also
