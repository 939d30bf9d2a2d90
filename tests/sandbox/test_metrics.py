"""A node tells what it does, and `rockroll serve` tells Prometheus."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rockroll import SandboxConfig
from rockroll.sandbox.http import metrics
from rockroll.sandbox.node.measured import BOUNDS, Measured
from rockroll.sandbox.wire import NodeMetrics, Took
from rockroll.sync import Sandbox


def test_what_took_how_long_is_counted_in_buckets_with_failures_apart() -> None:
    measured = Measured()
    for seconds, ok in ((0.1, True), (0.11, True), (0.3, False), (1000.0, True)):
        measured.add("start", seconds, ok=ok)
    took = measured.shown()["start"]
    assert len(took.counts) == len(BOUNDS) + 1 and sum(took.counts) == 4
    assert took.counts[BOUNDS.index(0.1)] == 1, "a bound belongs to the bucket that it ends"
    assert took.counts[BOUNDS.index(0.2)] == 1 and took.counts[-1] == 1
    assert took.failed == 1 and took.sum_s == pytest.approx(1000.51)
    measured.add("start", 1.0)
    assert sum(took.counts) == 4, "what was shown does not change"


def test_prometheus_text_has_buckets_that_add_up() -> None:
    took = {"start": Took(bounds=(0.1, 1.0), counts=[2, 1, 1], sum_s=9.5, failed=1)}
    node = NodeMetrics(node="n", sandboxes={"running": 3}, limit=4, running=1, waiting={"a": 2, "b": 1}, took=took)
    lines = metrics.text(node, []).decode().splitlines()
    for line in (
        'rockroll_sandboxes{node="n",state="running"} 3.0',
        'rockroll_admission_limit{node="n"} 4.0',
        'rockroll_admission_waiting{node="n"} 3.0',
        'rockroll_admission_seconds_bucket{kind="start",le="0.1",node="n"} 2.0',
        'rockroll_admission_seconds_bucket{kind="start",le="1",node="n"} 3.0',
        'rockroll_admission_seconds_bucket{kind="start",le="+Inf",node="n"} 4.0',
        'rockroll_admission_seconds_count{kind="start",node="n"} 4.0',
        'rockroll_admission_seconds_sum{kind="start",node="n"} 9.5',
        'rockroll_admission_failures_total{kind="start",node="n"} 1.0',
    ):
        assert line in lines


def test_a_server_tells_of_its_nodes_sandboxes_to_who_has_the_token(server: str, node_home: Path) -> None:
    token = (node_home / "token").read_text().strip()
    with Sandbox(SandboxConfig(memory="64m"), base_url=server, token=token):
        asked = urllib.request.Request(f"{server}/metrics", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            said = answer.read().decode()
    counts = dict(line.rsplit(" ", 1) for line in said.splitlines() if not line.startswith("#"))
    (running,) = (value for name, value in counts.items() if 'state="running"' in name)
    (started,) = (value for name, value in counts.items() if "seconds_count" in name and 'kind="start"' in name)
    (waited,) = (value for name, value in counts.items() if "seconds_count" in name and 'kind="wait"' in name)
    assert (running, started, waited) == ("1.0", "1.0", "1.0")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server}/metrics")
