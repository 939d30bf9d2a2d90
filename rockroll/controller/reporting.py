"""Where the rows and episodes of a run go beside its directory: trackers, Prometheus, OpenTelemetry.

In: a RunConfig, a run directory, a display. Out: what takes each row, or hears each event, and returns at once; at the
end all is sent. Leaves each place to a file in observe/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rockroll.controller.config import RunConfig
from rockroll.controller.run_dir import RunDir
from rockroll.controller.traces import Traces
from rockroll.observe import otlp, trackers
from rockroll.observe.display import Display
from rockroll.observe.metrics import Row
from rockroll.observe.prometheus import Exporter


def require(config: RunConfig) -> None:
    """UsageError where a tracker's package is not installed, or a tracker could not log in. Starts nothing."""
    trackers.require(config.track)
    if config.metrics.otlp:
        otlp.require()


@contextmanager
def tracing(config: RunConfig) -> Iterator[Traces]:
    """A trace of each episode for the collector that the recipe names, if any."""
    spans = otlp.Spans(config.metrics.otlp, config.name) if config.metrics.otlp else None
    try:
        yield Traces(spans)
    finally:
        if spans is not None:
            spans.close()


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
