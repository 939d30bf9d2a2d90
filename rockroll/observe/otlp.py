"""Spans for an OpenTelemetry collector, over OTLP and HTTP, by OpenTelemetry's own SDK.

In: finished spans with their children, in seconds since 1970. Out: one trace each, sent in batches from a thread.
Leaves what a span means to the caller. A collector that is not there costs spans and a warning in the log, never a run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from rockroll.errors import UsageError

PACKAGES = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
_SEND_S = 5.0
"""How long one batch may take, and the last one at the end."""
Attributes = Mapping[str, str | int | float | bool]


def require() -> None:
    """UsageError where the SDK or the exporter is not installed."""
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UsageError(f"metrics otlp needs OpenTelemetry's packages: pip install {PACKAGES}")


class Spans:
    """`trace` ─► … ─► close. endpoint: the collector's address, as in http://127.0.0.1:4318."""

    def __init__(self, endpoint: str, run: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # pyright: ignore[reportMissingImports]
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace import TracerProvider  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # pyright: ignore[reportMissingImports]

        resource = Resource.create({"service.name": "rockroll", "rockroll.run": run})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rockroll")

    def trace(
        self,
        name: str,
        begun: float,
        ended: float,
        attributes: Attributes,
        *,
        failed: str = "",
        children: Sequence[tuple[str, float, float, Attributes]] = (),
    ) -> None:
        """One trace: a span and those within it, each (name, begun, ended, attributes). failed: why, if it did."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context  # pyright: ignore[reportMissingImports]

        root = self._tracer.start_span(name, start_time=_ns(begun), attributes=dict(attributes))
        within = set_span_in_context(root)
        for child, start, end, told in children:
            span = self._tracer.start_span(child, context=within, start_time=_ns(start), attributes=dict(told))
            span.end(_ns(max(start, end)))
        if failed:
            root.set_status(Status(StatusCode.ERROR, failed))
        root.end(_ns(max(begun, ended)))

    def close(self) -> None:
        """What is left is sent, within seconds."""
        self._provider.force_flush(int(_SEND_S * 1000))
        self._provider.shutdown()


def _ns(seconds: Any) -> int:
    return round(seconds * 1e9)
