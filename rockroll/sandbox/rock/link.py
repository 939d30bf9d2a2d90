"""What the endpoints share: their way to the node, and what a client that hangs up ends.

In: requests. Out: the node's link, the files of a box. Leaves what is done with them to life.py, commands.py, files.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from rockroll import rpc
from rockroll.errors import PeerLost, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.client_files import Files
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.node_client import connect_node

T = TypeVar("T")


def node_of(request: Request) -> NodeLink:
    return request.app.state.node


class BoxFiles(Files):
    """The files of one box, on the server's link to the node."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def id(self) -> str:
        return self._name

    async def _connected(self) -> rpc.Client:
        return await connect_node()

    async def _call(self, method: str, body: wire.Struct, type: type[T] = object, *, parts: Any = None) -> T:
        try:
            return await (await connect_node()).call(method, body, type=type, parts=parts)
        except PeerLost as error:
            raise SandboxLost(f"the node died while {method} was under way: {error}", cause="node_lost") from error


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Its result; where the client hangs up first the work is cancelled, and with it the command in the box."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise UsageError("the client hung up")  # nobody reads it
        return doing.result()
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


def as_bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what}: text that UTF-8 can carry ({error.reason} at character {error.start})") from None
