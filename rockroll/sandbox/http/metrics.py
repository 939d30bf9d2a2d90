"""A node's numbers in Prometheus' text format, at /metrics of `rockroll serve`.

In: what node.metrics and pool.list say when it is asked. Out: text. Leaves counting to the node, and a run's numbers to
observe/prometheus.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from rockroll.sandbox.wire import NodeMetrics, PoolInfo

CONTENT_TYPE = CONTENT_TYPE_LATEST
Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


def text(node: NodeMetrics, pools: Sequence[PoolInfo]) -> bytes:
    """The page that Prometheus reads."""

    class Now(Collector):
        def collect(self) -> Iterator[Family]:
            yield from _families(node, pools)

    registry = CollectorRegistry()
    registry.register(Now())
    return generate_latest(registry)


def _families(node: NodeMetrics, pools: Sequence[PoolInfo]) -> Iterator[Family]:
    boxes = GaugeMetricFamily("rockroll_sandboxes", "Sandboxes by state.", labels=["node", "state"])
    for state, count in sorted(node.sandboxes.items()):
        boxes.add_metric([node.node, state], count)
    yield boxes
    for name, says, value in (
        ("limit", "How many starts and removals may be under way at once now.", node.limit),
        ("running", "Starts and removals under way.", node.running),
        ("waiting", "Starts and removals that wait for their turn.", sum(node.waiting.values())),
    ):
        gauge = GaugeMetricFamily(f"rockroll_admission_{name}", says, labels=["node"])
        gauge.add_metric([node.node], value)
        yield gauge
    took = HistogramMetricFamily(
        "rockroll_admission_seconds",
        "Seconds by kind: start and remove in Podman, wait before either.",
        labels=["node", "kind"],
    )
    failed = CounterMetricFamily("rockroll_admission_failures", "Those that failed.", labels=["node", "kind"])
    for kind, each in sorted(node.took.items()):
        names = [*(f"{bound:g}" for bound in each.bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(each.counts)), strict=True))
        took.add_metric([node.node, kind], buckets, each.sum_s)
        failed.add_metric([node.node, kind], each.failed)
    yield took
    yield failed
    labels = ["node", "pool"]
    ready = GaugeMetricFamily("rockroll_pool_ready", "Boxes of a warm pool that can be had at once.", labels=labels)
    taken = CounterMetricFamily("rockroll_pool_taken", "Boxes that somebody got from it.", labels=labels)
    missed = CounterMetricFamily("rockroll_pool_missed", "Calls that found none ready.", labels=labels)
    for pool in pools:
        ready.add_metric([node.node, pool.name], pool.ready)
        taken.add_metric([node.node, pool.name], pool.taken)
        missed.add_metric([node.node, pool.name], pool.missed)
    yield from (ready, taken, missed)
