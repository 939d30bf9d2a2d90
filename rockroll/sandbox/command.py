"""`Command`: one command in a sandbox, on its own feet: it goes on whatever becomes of who started it.

In: a sandbox and a command's id (`Sandbox.start_command`, `Sandbox.command`). Out: its output as it comes or from a
byte offset, its end; input and signals to it. Leaves the doing to the node (commands.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from rockroll.errors import PeerLost, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.linux.signals import number_of
from rockroll.sandbox.wire import CommandInfo, Observation, OutputChunk

if TYPE_CHECKING:
    from rockroll.sandbox.node_client import Node

T = TypeVar("T")
INPUT_PART = 1 << 18
"""Bytes of input carried by one message."""


class Calls(Protocol):
    """What a command asks of its sandbox."""

    @property
    def id(self) -> str: ...
    async def _connected(self) -> Node: ...
    async def _call(self, method: str, body: wire.Struct, type: type[T] = object) -> T: ...


class Command:
    """One command. Every method raises SessionError where the sandbox knows no command of this id."""

    def __init__(self, sandbox: Calls, command_id: str) -> None:
        self.id = command_id
        self._sandbox = sandbox

    def __repr__(self) -> str:
        return f"Command({self.id!r} in {self._sandbox.id})"

    async def output(self, offset: int = 0, *, follow: bool = True) -> AsyncIterator[OutputChunk]:
        """What it prints, in order of arrival, from byte `offset` of both streams on; with `follow`, to its end.

        The next offset is chunk.offset + len(chunk.data): a reader that was killed goes on there.
        """
        node = await self._sandbox._connected()
        body = wire.ReadOutput(id=self._sandbox.id, command_id=self.id, offset=offset, follow=follow)
        try:
            async for chunk in node.stream("command.output", body, type=OutputChunk):
                yield chunk
        except PeerLost as error:
            raise SandboxLost(f"the node died while output was read: {error}", cause="node_lost") from error

    async def wait(self, *, output: bool = True) -> Observation:
        """Its end, with all output that was kept (`output=False`: without). Cancelling this leaves the command running:
        see `cancel`."""
        ref = wire.CommandRef(id=self._sandbox.id, command_id=self.id, output=output)
        return await self._sandbox._call("command.wait", ref, Observation)

    async def _wait_or_cancel(self) -> Observation:
        try:
            return await self.wait()
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(self.cancel()))
            raise

    async def cancel(self) -> Observation:
        """Kills it and all it has started: the outcome is "killed", unless it had ended before."""
        return await self._sandbox._call("command.cancel", self._ref, Observation)

    async def send_input(self, data: bytes | str) -> None:
        """Bytes (or text, as UTF-8) for its standard input; returns once the command's pipe has them.

        SessionError where it was not started with stdin=True, has closed its input, or has ended.
        """
        raw = data.encode() if isinstance(data, str) else data
        for start in range(0, len(raw), INPUT_PART):
            part = raw[start : start + INPUT_PART]
            await self._sandbox._call(
                "command.input", wire.SendInput(id=self._sandbox.id, command_id=self.id, data=part)
            )

    async def close_input(self) -> None:
        """The command reads end of file after what was sent."""
        await self._sandbox._call("command.input", wire.SendInput(id=self._sandbox.id, command_id=self.id, end=True))

    async def send_signal(self, which: str | int) -> None:
        """A signal ("INT", "SIGTERM", 15) to every process that the command has started.

        INT reaches the session's bash as well, as Ctrl-C does on a terminal: it then leaves the command.
        """
        body = wire.SendSignal(id=self._sandbox.id, command_id=self.id, signal=number_of(which))
        await self._sandbox._call("command.signal", body)

    async def info(self) -> CommandInfo:
        """Its state, and how much it has printed."""
        for info in await self._sandbox._call("command.list", wire.Ref(id=self._sandbox.id), list[CommandInfo]):
            if info.command_id == self.id:
                return info
        raise UsageError(f"the sandbox keeps no command {self.id!r}")

    @property
    def _ref(self) -> wire.CommandRef:
        return wire.CommandRef(id=self._sandbox.id, command_id=self.id)
