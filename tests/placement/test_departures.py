"""Through a hub: a call to a process that is gone for good is told so, and a server loses the peers that are."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rockroll import rpc
from rockroll.errors import PeerLost
from rockroll.rpc.departures import Notices
from rockroll.rpc.trunk import address_through
from rockroll.sandbox.cluster.file import ClusterFile
from rockroll.sandbox.cluster.presence import CLOSED_S
from tests.placement.cluster import Hub

CHILD = """
import asyncio, sys
from rockroll import rpc

async def main():
    served, called = sys.argv[1:]
    async def hold(body, peer):
        await asyncio.Event().wait()
    async def there(body, peer):
        return True
    server = rpc.Server(served, {"hold": hold, "there": there})
    await server.start()
    client = await rpc.connect(called)
    await client.call("hold")

asyncio.run(main())
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path / "cluster.json")
    made.start()
    yield made
    made.stop()


class Holds:
    """A server that answers nothing, and notes who calls, whose call has ended and who has left."""

    def __init__(self, address: str) -> None:
        self.called, self.cancelled, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.server = rpc.Server(address, {"hold": self.hold}, on_disconnect=lambda _: self.left.set())

    async def hold(self, _body: Any, _peer: rpc.Peer) -> None:
        self.called.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


async def test_who_is_killed_is_gone_for_whom_it_served_and_for_whom_it_called(hub: Hub) -> None:
    said = ClusterFile.read(hub.file)
    mine, its = (address_through(said.hub, said.server_key) for _ in range(2))
    here = Holds(mine)
    await here.server.start()
    caller = await rpc.connect(its)  # before there is anybody
    waiting = asyncio.ensure_future(caller.call("hold"))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, its, mine)
    try:
        async with asyncio.timeout(30):
            await here.called.wait()
        hub.stop()  # one that is started anew is asked again
        hub.start()
        assert await asyncio.wait_for(caller.call("there"), 20) and not waiting.done()
    finally:
        child.kill()
        await child.wait()
    began = time.monotonic()
    with pytest.raises(PeerLost, match="is gone"):
        await asyncio.wait_for(waiting, 20)
    await asyncio.wait_for(asyncio.gather(here.left.wait(), here.cancelled.wait()), 20)
    assert time.monotonic() - began < CLOSED_S + 5
    assert here.server.peers == []
    with pytest.raises(PeerLost, match="nothing answered"):  # it may come back, and is waited for as any server is
        await caller.call("hold", timeout=0.2)
    await caller.close()
    await here.server.close()


async def test_one_that_may_have_gone_before_the_hub_was_there_is_expected_and_told_of() -> None:
    expected: list[bytes] = []
    gone: set[bytes] = set()
    notices = Notices(gone.__contains__, expected.append)
    waits = [asyncio.ensure_future(notices.wait(b"a")) for _ in range(2)]
    left = asyncio.ensure_future(notices.wait(b"a"))
    other = asyncio.ensure_future(notices.wait(b"b"))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    assert set(expected) == {b"a", b"b"} and not any(each.done() for each in (*waits, other))
    notices.tell([b"a", b"nobody asks after"])
    await asyncio.wait_for(asyncio.gather(*waits), 1)
    assert not other.done()
    gone.add(b"c")
    await asyncio.wait_for(notices.wait(b"c"), 1)  # known already
    other.cancel()
