"""Where a run's numbers go beside its directory.

In: checked values, from recipe/. Out: a frozen MetricsConfig. Leaves the serving to prometheus.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What can be asked for a run's numbers while it goes on."""

    prometheus: str = ""
    """HOST:PORT at which Prometheus finds them, as in 127.0.0.1:9100; empty: nobody listens."""
    otlp: str = ""
    """The address of an OpenTelemetry collector, as in http://127.0.0.1:4318, that gets a trace of each episode; empty:
    there is none."""

    def __post_init__(self) -> None:
        if self.prometheus:
            self.place()
        parts = urlsplit(self.otlp)
        if self.otlp and not (parts.scheme in ("http", "https") and parts.hostname):
            raise ValueError(f"metrics otlp is http(s)://HOST:PORT, as in http://127.0.0.1:4318; got {self.otlp!r}")

    def place(self) -> tuple[str, int]:
        """Host and port."""
        host, colon, port = self.prometheus.rpartition(":")
        if not (colon and host and port.isdigit() and int(port) < 2**16):
            raise ValueError(f"metrics prometheus is HOST:PORT, as in 127.0.0.1:9100; got {self.prometheus!r}")
        return host.strip("[]"), int(port)
