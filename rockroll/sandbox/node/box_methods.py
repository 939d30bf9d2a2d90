"""The node's methods on a box that runs: its processes, environment, sessions, commands and logs, as in wire/.

In: rpc calls, and the boxes that they name. Out: replies and streams. Leaves all of the work to the box; files are
file_methods.py, and what makes and ends boxes is host.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rockroll import rpc
from rockroll.sandbox import wire
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.exec import far_terminal, processes
from rockroll.sandbox.linux.signals import number_of


class BoxMethods:
    """box: the box of an id, a prefix of one or a name; raises SandboxNotFound."""

    def __init__(self, box: Callable[[str], Box]) -> None:
        self._box = box

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            "sandbox.stats": self._stats,
            "sandbox.processes": self._processes,
            "sandbox.signal": self._signal,
            "sandbox.env": self._get_env,
            "sandbox.set_env": self._set_env,
            "sandbox.terminal": self._terminal,
            "terminal.open": self._open_terminal,
            "session.create": self._create_session,
            "session.close": self._close_session,
            "session.list": self._list_sessions,
            "session.run": self._run,
            "execute": self._execute,
            "command.start": self._start_command,
            "command.list": self._list_commands,
            "command.wait": self._wait_command,
            "command.cancel": self._cancel_command,
            "command.output": self._command_output,
            "command.input": self._command_input,
            "command.signal": self._command_signal,
            "logs": self._logs,
        }

    async def _stats(self, body: wire.Ref, _peer: rpc.Peer) -> wire.Stats:
        return await asyncio.to_thread(self._box(body.id).stats)

    async def _processes(self, body: wire.Ref, _peer: rpc.Peer) -> list[wire.ProcessInfo]:
        return await asyncio.to_thread(self._box(body.id).processes)

    async def _signal(self, body: wire.Signal, _peer: rpc.Peer) -> None:
        number = number_of(body.signal)
        await asyncio.to_thread(processes.send, self._box(body.id).everything, body.pid, number, body.birth)

    async def _get_env(self, body: wire.Ref, _peer: rpc.Peer) -> dict[str, str]:
        return self._box(body.id).environment()

    async def _set_env(self, body: wire.SetEnv, _peer: rpc.Peer) -> dict[str, str]:
        return self._box(body.id).change_environment(body.changes)

    async def _terminal(self, body: wire.Terminal, _peer: rpc.Peer) -> wire.TerminalEnd:
        return await self._box(body.id).terminal(body)

    async def _open_terminal(
        self, body: wire.Terminal, _peer: rpc.Peer, parts: rpc.Parts
    ) -> AsyncIterator[wire.TerminalOutput]:
        async for each in far_terminal.carry(body, parts.of(wire.TerminalInput), self._box(body.id).terminal):
            yield each

    # -- sessions and programs

    async def _create_session(self, body: wire.SessionSpec, _peer: rpc.Peer) -> wire.SessionInfo:
        return (await self._box(body.id).sessions.create(body.session, body.env, body.cwd)).info()

    async def _close_session(self, body: wire.SessionSpec, _peer: rpc.Peer) -> None:
        await self._box(body.id).sessions.close(body.session)

    async def _list_sessions(self, body: wire.Ref, _peer: rpc.Peer) -> list[wire.SessionInfo]:
        return self._box(body.id).sessions.infos()

    # No `async` on these two: each coroutine on the way of a command is one more step at its every await.
    def _run(self, body: wire.Run, _peer: rpc.Peer) -> Awaitable[wire.Observation]:
        return self._box(body.id).run(body)

    def _execute(self, body: wire.Execute, _peer: rpc.Peer) -> Awaitable[wire.Observation]:
        return self._box(body.id).execute(body)

    # -- commands that stand on their own feet

    async def _start_command(self, body: wire.Start, _peer: rpc.Peer) -> wire.CommandInfo:
        box = self._box(body.id)
        box.status.need_rest()
        return box.commands.start(body)

    async def _list_commands(self, body: wire.Ref, _peer: rpc.Peer) -> list[wire.CommandInfo]:
        return self._box(body.id).commands.list()

    async def _wait_command(self, body: wire.CommandRef, _peer: rpc.Peer) -> wire.Observation:
        return await self._box(body.id).commands.wait(body.command_id, body.output)

    async def _cancel_command(self, body: wire.CommandRef, _peer: rpc.Peer) -> wire.Observation:
        return await self._box(body.id).commands.cancel(body.command_id)

    async def _command_output(self, body: wire.ReadOutput, _peer: rpc.Peer) -> AsyncIterator[wire.OutputChunk]:
        async for part in self._box(body.id).commands.output(body.command_id, body.offset, body.follow):
            yield wire.OutputChunk(
                offset=part.offset, stream="stdout" if part.stream == 1 else "stderr", data=part.data
            )

    async def _command_input(self, body: wire.SendInput, _peer: rpc.Peer) -> None:
        await self._box(body.id).commands.send_input(body.command_id, body.data, body.end)

    async def _command_signal(self, body: wire.SendSignal, _peer: rpc.Peer) -> None:
        self._box(body.id).commands.send_signal(body.command_id, body.signal)

    # -- logs

    async def _logs(self, body: wire.Logs, _peer: rpc.Peer) -> AsyncIterator[wire.LogChunk]:
        spool = self._box(body.id).log_file
        if body.follow:
            async for offset, data in spool.follow(body.offset):
                yield wire.LogChunk(offset=offset, data=data)
            return
        offset = max(body.offset, spool.start)
        while data := spool.read(offset):
            yield wire.LogChunk(offset=offset, data=data)
            offset += len(data)
