"""Where a run's numbers go beside its directory.

In: checked values, from recipe/. Out: a frozen MetricsConfig. Leaves the serving to prometheus.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What can be asked for a run's numbers while it goes on."""

    prometheus: str = ""
    """HOST:PORT at which Prometheus finds them, as in 127.0.0.1:9100; empty: nobody listens."""

    def __post_init__(self) -> None:
        if self.prometheus:
            self.place()

    def place(self) -> tuple[str, int]:
        """Host and port."""
        host, colon, port = self.prometheus.rpartition(":")
        if not (colon and host and port.isdigit() and int(port) < 2**16):
            raise ValueError(f"metrics prometheus is HOST:PORT, as in 127.0.0.1:9100; got {self.prometheus!r}")
        return host.strip("[]"), int(port)
