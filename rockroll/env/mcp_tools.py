"""Tools of an MCP server, for an environment: on this host, in a sandbox, or at an address.

In: how the server is reached. Out: tool definitions for `info["tools"]`, and the text that a call gave. Leaves what
the tools are for, and earn, to the environment; the protocol to the package `mcp` (`pip install "rockroll[mcp]"`).

    async def reset(self, seed=None):
        self.tools = await McpTools.open(command=["python3", "server.py"])     # a program of this host, over stdin
        return "…", {"tools": self.tools.definitions}

    async def step(self, action):
        if call := called(action):
            return await self.tools.call(call), 0.0, False, False, {}
        …

    def close(self):
        self.tools.close()

A server in a sandbox is a program there: it has what the sandbox has, no network first of all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from rockroll.env.api import Call
from rockroll.errors import EnvError, RockrollError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

OPEN_SECONDS = 30.0
"""For the server to start and to say what tools it has."""
SHOWN = 20_000
"""Characters of a result that go back to the model; the rest is cut, and said to be."""


class McpTools:
    """One connection to one server. `close` at the end; it is not for two loops."""

    def __init__(self, transport: Any, name: str, seconds: float) -> None:
        """Use `open`."""
        self._transport, self._name, self._seconds = transport, name, seconds
        self.definitions: list[dict[str, Any]] = []
        """{"name", "description", "parameters"} of each tool."""
        self._client: Any = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        # The protocol's connection is entered and left in one task; this one owns it.
        self._owner = asyncio.get_running_loop().create_task(self._own())

    @classmethod
    async def open(
        cls,
        *,
        command: Sequence[str] | None = None,
        url: str | None = None,
        sandbox: Sandbox | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float = 60.0,
    ) -> Self:
        """Connected, with the server's tools.

        command: a program and its arguments, here or in `sandbox`, that speaks over stdin and stdout; env, cwd: its
        variables and folder. url: of a server that speaks streamable HTTP. timeout: seconds of one call.
        UsageError for a choice that is none, EnvError where the server does not answer.
        """
        transport, name = _transport(command, url, sandbox, env, cwd)
        tools = cls(transport, name, timeout)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await asyncio.shield(tools._opened)
        except TimeoutError:
            await tools.aclose()
            raise EnvError(f"the MCP server {name} did not say what tools it has within {OPEN_SECONDS:g} s") from None
        except BaseException:
            await tools.aclose()
            raise
        return tools

    async def call(self, call: Call) -> str:
        """What the tool gave, as text: for the model to read. A call that cannot be, or that the server refuses, is a
        text that begins with "error: ". EnvError where the server is gone, or hangs."""
        if call.name not in {each["name"] for each in self.definitions}:
            return f"error: there is no tool {call.name}"
        if call.arguments is None:
            return "error: the arguments are no JSON object"
        work = asyncio.ensure_future(self._client.call_tool(call.name, call.arguments))
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.wait((work, self._owner), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise EnvError(f"the MCP server {self._name}: {call.name} was not done in {self._seconds:g} s") from None
        finally:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        if work.cancelled():
            raise EnvError(f"the MCP server {self._name} ended in the middle of {call.name}")
        if error := work.exception():
            if self._owner.done() or "onnection" in str(error):
                raise EnvError(f"the MCP server {self._name} ended in the middle of {call.name}: {error}")
            return f"error: {error}"
        return _text(work.result())

    def close(self) -> None:
        """Ends the connection, and a server that was started for it, without waiting."""
        self._ended.set()

    async def aclose(self) -> None:
        """As `close`, and returns when it is done."""
        self.close()
        if not self._opened.done():
            self._owner.cancel()
        await asyncio.gather(self._owner, return_exceptions=True)
        if self._opened.done() and not self._opened.cancelled():
            self._opened.exception()

    async def _own(self) -> None:
        try:
            async with _package().Client(self._transport) as self._client:
                self.definitions = [
                    {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
                    for tool in (await self._client.list_tools()).tools
                ]
                self._opened.set_result(None)
                await self._ended.wait()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a server or the protocol raises is told to who opened it
            if not self._opened.done():
                known = isinstance(error, RockrollError)
                self._opened.set_exception(
                    error if known else EnvError(f"the MCP server {self._name} could not be used: {_first(error)}")
                )


def _transport(
    command: Sequence[str] | None,
    url: str | None,
    sandbox: Sandbox | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
) -> tuple[Any, str]:
    if (command is None) == (url is None) or isinstance(command, str) or command == []:
        raise UsageError(
            "an MCP server is command=[program, arguments …], here or in sandbox=…, or url=http://…; got "
            f"command={command!r}, url={url!r}"
        )
    if url is not None:
        if sandbox is not None:
            raise UsageError("a server in a sandbox is reached by command; or by url, through sandbox.forward(port)")
        return url, url
    assert command is not None
    if sandbox is not None:
        return _in_sandbox(sandbox, list(command), dict(env or {}), cwd), f"{command[0]} in {sandbox.id}"
    package = _package()
    program, *arguments = command
    return package.StdioServerParameters(command=program, args=arguments, env=dict(env or {}), cwd=cwd), program


@asynccontextmanager
async def _in_sandbox(sandbox: Sandbox, command: list[str], env: dict[str, str], cwd: str | None) -> AsyncIterator[Any]:
    """The protocol's two streams, over stdin and stdout of a program in the sandbox; it is killed at the end."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    into, received = anyio.create_memory_object_stream[Any](0)
    sending, out_of = anyio.create_memory_object_stream[Any](0)
    program = await sandbox.start_command(command, stdin=True, env=env, cwd=cwd)

    async def read() -> None:
        rest = b""
        async with into:
            async for chunk in program.output():
                if chunk.stream != "stdout":
                    continue
                *lines, rest = (rest + chunk.data).split(b"\n")
                for line in lines:
                    if line.strip():
                        try:
                            message: Any = SessionMessage(jsonrpc_message_adapter.validate_json(line))
                        except ValueError as error:
                            message = error
                        await into.send(message)

    async def write() -> None:
        async for message in out_of:
            await program.send_input(message.message.model_dump_json(by_alias=True, exclude_unset=True) + "\n")

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(write)
        try:
            yield received, sending
        finally:
            with anyio.CancelScope(shield=True):
                for stream in (received, sending, out_of):
                    await stream.aclose()
                try:
                    await program.cancel()
                except RockrollError:
                    pass  # its sandbox is gone, and it with it
            group.cancel_scope.cancel()


def _package() -> Any:
    try:
        import mcp
    except ImportError:
        raise UsageError(
            'tools of an MCP server take the package mcp, which is not installed; pip install "rockroll[mcp]"'
        ) from None
    return mcp


def _text(result: Any) -> str:
    parts = [part.text if getattr(part, "text", None) is not None else f"[{part.type}]" for part in result.content]
    text = "\n".join(parts)
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}\n[{len(text) - SHOWN} characters more]"
    return f"error: {text}" if result.is_error else text


def _first(error: BaseException) -> str:
    """What went wrong, out of the groups that task groups make of it."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
