"""What the endpoints share: their way to the node.

In: requests. Out: the node's link, the files of a box. Leaves what is done with them to life.py, commands.py, files.py.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request

from rockroll import rpc
from rockroll.errors import PeerLost, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.client_files import Files
from rockroll.sandbox.cluster.client import HubNode
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.node_client import connect_here

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

    async def look(self, path: str) -> wire.FileStat | None:
        """What is at a path, or at the end of the link there."""
        return await self._stat(path, True)

    async def _connected(self) -> rpc.Client | HubNode:
        return await connect_here()

    async def _call(self, method: str, body: wire.Struct, type: type[T] = object, *, parts: Any = None) -> T:
        try:
            return await (await connect_here()).call(method, body, type=type, parts=parts)
        except PeerLost as error:
            raise SandboxLost(f"the node died while {method} was under way: {error}", cause="node_lost") from error


def as_bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what}: text that UTF-8 can carry ({error.reason} at character {error.start})") from None
