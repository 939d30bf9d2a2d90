"""A run's numbers for Prometheus, read when they are asked for.

In: a Status, rows. Out: http://HOST:PORT/metrics while the run goes on. Leaves scraping and alarms to Prometheus, and
a node's own numbers to sandbox/http/metrics.py.

Nothing is counted for it: an answer is made of what the display shows, of the last row, and of what processes and nodes
of the run say when they are asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from rockroll.errors import HostError
from rockroll.observe.config import MetricsConfig
from rockroll.observe.metrics import Row
from rockroll.observe.status import Status


class Exporter:
    """`with Exporter(…) as exporter: exporter.write(row)`. Without an address it does nothing."""

    def __init__(self, config: MetricsConfig, run: str, status: Status) -> None:
        self._collector = RunCollector(run, status)
        self._server: Any = None
        self.url = ""
        if not config.prometheus:
            return
        registry = CollectorRegistry()
        registry.register(self._collector)
        host, port = config.place()
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise HostError(
                f"metrics prometheus: {config.prometheus} cannot be listened at: {error.strerror}; choose another port"
            ) from None
        self.url = f"http://{host if ':' not in host else f'[{host}]'}:{self._server.server_port}/metrics"

    def write(self, row: Row) -> None:
        self._collector.row = row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class RunCollector(Collector):
    """What a scrape of a run finds."""

    def __init__(self, run: str, status: Status) -> None:
        self.row: Row = {}
        self._run, self._status = run, status

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        status = self._status
        for name, says, value in (
            ("step", "The step under way.", status.step),
            ("steps", "The steps of the whole run.", status.steps),
            ("episodes_running", "Episodes under way.", status.running),
            ("phase_episodes_done", "Episodes that ended in this phase.", status.done),
            ("phase_episodes_wanted", "Episodes that this phase needs.", status.wanted),
            ("tokens_per_second", "Sampled tokens a second in this phase.", status.tokens_per_s),
        ):
            gauge = GaugeMetricFamily(f"rockroll_{name}", says, labels=["run"])
            gauge.add_metric([self._run], value)
            yield gauge
        phase = GaugeMetricFamily("rockroll_phase", "1 for the phase under way.", labels=["run", "phase"])
        phase.add_metric([self._run, status.phase], 1)
        yield phase
        episodes = CounterMetricFamily("rockroll_episodes", "Ended episodes.", labels=["run", "outcome"])
        for outcome, count in list(status.outcomes.items()):
            episodes.add_metric([self._run, outcome], count)
        yield episodes
        seconds = CounterMetricFamily("rockroll_phase_seconds", "Seconds by phase.", labels=["run", "phase"])
        for name, value in list(status.times.items()):
            seconds.add_metric([self._run, name], value)
        yield seconds
        last = GaugeMetricFamily(
            "rockroll_metric", "The last row of metrics.jsonl, by its names.", labels=["run", "name"]
        )
        for name, value in self.row.items():
            last.add_metric([self._run, name], float(value))
        yield last
        yield from self._census()

    def _census(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for number in self._status.census():
            family = families.get(number.name)
            if family is None:
                kind = CounterMetricFamily if number.counter else GaugeMetricFamily
                family = kind(f"rockroll_{number.name}", number.says, labels=["run", *number.labels])
                families[number.name] = family
            family.add_metric([self._run, *number.labels.values()], number.value)
        yield from families.values()
