"""A client of whatever address.

In: an address. Out: a Client that is open. Leaves the ways to get there to client.py and, through a hub, through.py.
"""

from __future__ import annotations

from pathlib import Path

from rockroll.rpc.client import Client
from rockroll.rpc.through import HubClient


async def connect(address: str, key: Path | None = None) -> Client:
    """A client of the server at `address`. PeerLost at once where nothing answers a unix address; others wait.

    key: the file of the key that both ends of a tcp link hold. Where that leads to another host it is always used, by
    default the home's; HostError where that is missing.
    """
    client = HubClient(address) if address.startswith("hub:") else Client(address, key)
    await client.open()
    return client
