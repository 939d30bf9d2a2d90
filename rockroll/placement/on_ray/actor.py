"""The actor that holds one process of a run on its node.

In: the run's name and key. Out: where its host listens; the host ends with the run, the actor with its host. Leaves
what a host does to host.py.
"""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from concurrent.futures import Future
from typing import Any

import ray

from rockroll.errors import HostError
from rockroll.placement.on_ray import far
from rockroll.placement.on_ray.host import Host, versions


class HostActor:
    """A host, on a thread of its own: an actor's own event loop is Ray's."""

    def __init__(self, run: str, key: bytes) -> None:
        self._spot: Future[far.Spot] = Future()
        ip = ray.util.get_node_ip_address()
        node = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._serve, args=(node, ip, run, key), daemon=True).start()

    def spot(self) -> far.Spot:
        return self._spot.result(30)

    def _serve(self, node: str, ip: str, run: str, key: bytes) -> None:
        async def serve() -> None:
            host = Host(ip, run, key)
            await host.start()
            self._spot.set_result(
                far.Spot(node, os.getpid(), ip, host.address, host.ports, str(host.folder), versions(), platform.node())
            )
            await host.over.wait()
            await host.close()
            if not host.left:
                os._exit(0)  # the driver is gone, and Ray may take long to notice

        asyncio.set_event_loop_policy(None)  # Ray has set uvloop's, which starts children on the main thread only
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(serve())
        except BaseException as error:  # noqa: BLE001 - the driver waits for it
            if not self._spot.done():
                self._spot.set_exception(HostError(f"no process can be held on node {ip}: {error}"))
                return


HOST: Any = ray.remote(HostActor)
