"""A trace of each episode reaches an OpenTelemetry collector, here one that keeps what it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rockroll.controller.traces import Traces
from rockroll.errors import UsageError
from rockroll.observe import otlp
from rockroll.observe.config import MetricsConfig
from rockroll.rollout.sample import Episode, Event, Placed


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    class Keeps(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Keeps) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def episode(id: str, outcome: str, reward: float | None) -> Episode:
    return Episode(
        id,
        "shell",
        7,
        3,
        0,
        outcome,
        None,
        reward,
        [],
        2,
        0.5,
        detail="the box died",
        spent_s={"engine": 0.25},  # type: ignore[arg-type]
    )


def test_an_episode_is_a_trace_of_its_sandbox_its_turns_and_its_ending(collector: tuple[str, list[bytes]]) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, got = collector
    spans = otlp.Spans(address, "lake")
    others: list[str] = []
    told = Traces(spans).beside(lambda event: others.append(event.kind))
    told(Event("started", "train", 1, id="a", task="shell"))
    told(Event("started", "train", 2, id="b", task="shell"))
    told(Event("placed", "train", 2, placed=Placed("a", "shell", "0123", "alpha", 0.0)))
    told(Event("turn", "train", 2, 7, id="a", said="ls"))
    told(Event("turn", "train", 2, 5, id="a", said="cat"))
    told(Event("finished", "train", 1, 12, episode("a", "ok", 1.0)))
    told(Event("finished", "train", 0, 0, episode("b", "infra_error", None)))
    spans.close()
    assert others == ["started", "started", "placed", "turn", "turn", "finished", "finished"]
    found = [
        span
        for body in got
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    a, b = sorted({span.trace_id for span in found}, key=lambda id: -sum(span.trace_id == id for span in found))
    assert [span.name for span in found if span.trace_id == a] == ["sandbox", "turn 1", "turn 2", "ending", "episode"]
    root = next(span for span in found if span.trace_id == a and not span.parent_span_id)
    assert {span.parent_span_id for span in found if span.trace_id == a} == {b"", root.span_id}
    said = {pair.key: pair.value for pair in root.attributes}
    assert said["rockroll.episode"].string_value == "a" and said["rockroll.reward"].double_value == 1.0
    assert said["rockroll.spent_s.engine"].double_value == 0.25
    parts = [span for span in found if span.trace_id == a and span.parent_span_id]
    assert [one.end_time_unix_nano for one in parts[:-1]] == [one.start_time_unix_nano for one in parts[1:]]
    failed = next(span for span in found if span.trace_id == b and not span.parent_span_id)
    assert failed.status.code == 2 and failed.status.message == "infra_error: the box died"


def test_a_collector_that_is_not_there_stops_nothing() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    spans = otlp.Spans("http://127.0.0.1:9", "lake")
    told = Traces(spans).beside(lambda event: None)
    told(Event("started", "train", 1, id="a"))
    told(Event("finished", "train", 0, 0, episode("a", "ok", 1.0)))
    spans.close()


def test_without_a_collector_nothing_is_heard_and_nothing_imported() -> None:
    def other(event: Event) -> None: ...

    assert Traces(None).beside(other) is other


def test_what_is_no_address_or_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="metrics otlp is http"):
        MetricsConfig(otlp="127.0.0.1:4318")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs OpenTelemetry's packages: pip install opentelemetry-sdk"):
        otlp.require()
