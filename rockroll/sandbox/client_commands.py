"""What is run in a sandbox: the part of `Sandbox` with its sessions, programs and their log.

In: lines for a Bash session, programs with their arguments. Out: Observations, or Commands that go on by themselves.
Leaves a command under way to command.py, and the asking to client_link.py.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence

from rockroll.errors import PeerLost, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.client_link import Link
from rockroll.sandbox.command import Command
from rockroll.sandbox.wire import DEFAULT_SESSION, MAX_OUTPUT, CommandInfo, Observation


class Commands(Link):
    """Sessions and programs of one box."""

    async def arun(
        self,
        command: str | bytes,
        *,
        session: str = DEFAULT_SESSION,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
        command_id: str | None = None,
    ) -> Observation:
        """Runs a command in a persistent Bash session, which is opened on first use: variables, functions and the
        working directory stay for the next command.

        timeout: seconds; then everything that the command started is killed and the outcome is "timeout"; the session
        stays usable. max_output: bytes kept of each stream. Cancelling the call kills the command.
        command_id: a name for it; then it goes on should this process die, and the same call, made again by whomever,
        finds it instead of running it twice.
        """
        if command_id is not None:
            begun = await self.start_command(
                command, session=session, timeout=timeout, max_output=max_output, command_id=command_id
            )
            return await begun._wait_or_cancel()
        code = command.encode("utf-8", "surrogateescape") if isinstance(command, str) else command
        body = wire.Run(id=self.id, command=code, session=session, timeout=timeout, max_output=max_output)
        return await self._call("session.run", body, Observation)

    async def start_command(
        self,
        command: str | bytes | Sequence[str],
        *,
        session: str = DEFAULT_SESSION,
        stdin: bool = False,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        max_output: int = MAX_OUTPUT,
        command_id: str | None = None,
    ) -> Command:
        """Begins a command and returns: a string is a line for the session, a list is a program without a shell.

        stdin: whether `Command.send_input` will be used; else it reads /dev/null. env, cwd: of a program (a session has
        its own). command_id: a name for it, made up if left out; one that is known finds that command, and is refused
        with UsageError where it stands for another one. The command goes on if this process dies.
        """
        line = isinstance(command, str | bytes)
        if line and (env or cwd):
            raise UsageError("env and cwd go with a program, given as a list; a session has its own (create_session)")
        code = command.encode("utf-8", "surrogateescape") if isinstance(command, str) else command
        body = wire.Start(
            id=self.id,
            command_id=command_id or secrets.token_hex(8),
            command=code if isinstance(code, bytes) else None,
            argv=None if isinstance(code, bytes) else list(code),
            session=session,
            env=dict(env or {}),
            cwd=cwd,
            stdin=stdin,
            timeout=timeout,
            max_output=max_output,
        )
        await self._call("command.start", body)
        return Command(self, body.command_id)

    def command(self, command_id: str) -> Command:
        """The command of that id, started by whomever."""
        return Command(self, command_id)

    async def commands(self) -> list[CommandInfo]:
        """Those under way and the last 256 that ended, of `start_command` and of `arun` with a command_id."""
        return await self._call("command.list", self._ref, list[CommandInfo])

    async def execute(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        max_output: int = MAX_OUTPUT,
    ) -> Observation:
        """Runs one program without a shell. Its exit code comes from a wait outside the box, where nothing fakes it."""
        if isinstance(argv, str | bytes) or not argv:
            raise UsageError(f"execute takes the program and its arguments as a list, as in ['ls', '/']; got {argv!r}")
        body = wire.Execute(
            id=self.id,
            argv=list(argv),
            timeout=timeout,
            env=dict(env or {}),
            cwd=cwd,
            stdin=stdin,
            max_output=max_output,
        )
        return await self._call("execute", body, Observation)

    async def create_session(
        self, session: str = DEFAULT_SESSION, *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> None:
        """Opens a Bash session with these variables in this folder. SessionError where one has that name."""
        await self._call("session.create", wire.SessionSpec(id=self.id, session=session, env=dict(env or {}), cwd=cwd))

    async def close_session(self, session: str = DEFAULT_SESSION) -> None:
        """Ends a session and every process in it."""
        await self._call("session.close", wire.SessionSpec(id=self.id, session=session))

    async def logs(self, *, offset: int = 0, follow: bool = False) -> AsyncIterator[bytes]:
        """What the commands of this box printed, from byte `offset` on; with `follow`, until the box is gone."""
        node = await self._connected()
        body = wire.Logs(id=self.id, offset=offset, follow=follow)
        try:
            async for chunk in node.stream("logs", body, type=wire.LogChunk):
                yield chunk.data
        except PeerLost as error:
            raise SandboxLost(f"the node died while the log was read: {error}", cause="node_lost") from error
