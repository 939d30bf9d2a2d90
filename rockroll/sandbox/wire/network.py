"""Whom a box reaches, and who reaches it.

In and out: plain values. Leaves the rules of `network` to sandbox/network.py.
"""

from __future__ import annotations

from typing import Literal

from rockroll.sandbox.wire.base import Struct


class NetworkEvent(Struct, frozen=True):
    """One connection that a program in a box asked the proxy for."""

    time: float
    """Unix time in seconds."""
    method: str
    """CONNECT, or the method of a plain HTTP request; "" where the request could not be read."""
    host: str
    port: int
    verdict: Literal["allowed", "refused", "failed"]
    """refused: by a rule, or because the request could not be read. failed: the host did not answer."""
    reason: str = ""
    """The sentence that the program was told; of an allowed one, why it was broken off."""
    address: str = ""
    """What the name led to."""
    sent_bytes: int = 0
    received_bytes: int = 0
    open: bool = False


class NetworkInfo(Struct, frozen=True):
    network: str
    """none, open, or allow:HOST,…"""
    allowed: int = 0
    """Connections through the proxy that have ended, by verdict."""
    refused: int = 0
    failed: int = 0
    open: int = 0
    """Those under way."""
    recent: list[NetworkEvent] = []
    """The last ones, the oldest first, those that are open at the end."""


class Connect(Struct, frozen=True):
    """A connection from the host to a port of a box. Either way go parts of bytes, an empty one at the end of what that
    side sends; the first part that comes out is empty too and says that something listens."""

    id: str
    port: int
