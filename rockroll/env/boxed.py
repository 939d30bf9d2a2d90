"""An environment inside a sandbox: what it does, and what the model's answers do to it, stays in there.

In: a sandbox, and an environment's files (source.py). Out: an Env with async methods, played by one process in the box.
Leaves giving and ending boxes to the caller, and the box's side to box_player.py.

    open box ──► reset (starts the process, takes the files in) ──► step … ──► aclose, and the box is nobody's any more
                   └──────────┴── hang, crash, the box lost: EnvError ──► aclose; the caller gives the box back

The process has what the box has: its image's Python and packages, its limits, no network unless the box has one. What
runs there may have changed it: nothing that it says is believed before it was checked, and a reward is its own word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rockroll.env.api import called
from rockroll.env.source import Source
from rockroll.errors import EnvError, SandboxError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.command import Command
    from rockroll.sandbox.wire import OutputChunk

START_S = 60.0
"""Seconds at least for the first call, which waits for Python to start and the environment's libraries to load."""
SHOWN = 400
"""Characters of what the process said last, in the error of one that died."""
MOST = 16 << 20
"""Bytes of one reply. No model reads so much."""
KEPT = 1 << 30
"""Bytes of one episode that the box's spool takes."""
_HEAD = struct.Struct("!I")
_PLAYER = Path(__file__).with_name("box_player.py").read_text("utf-8")


class BoxedEnv:
    """An Env whose `reset` and `step` are played in a sandbox. EnvError for what it raises, a hang, a crash.

    split: told to a constructor that takes one. limit: seconds that one `reset` or `step` may take; then it hangs.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        source: Source,
        options: Mapping[str, Any] | None = None,
        *,
        split: str = "train",
        limit: float = 60.0,
    ) -> None:
        self._sandbox, self._source, self._options = sandbox, source, dict(options or {})
        self._split, self._limit = split, limit
        self._program: Command | None = None
        self._output: AsyncIterator[OutputChunk] | None = None
        self._read = bytearray()
        self._said = b""
        """The end of what it printed."""
        self._astray = False
        """A call did not come back: its answer may still come, and would be taken for the next call's."""

    async def reset(self, seed: int | None = None) -> tuple[Any, ...]:
        if self._program is None:
            await self._start()
        return await self._ask("reset", seed, self._limit)

    async def step(self, action: str) -> tuple[Any, ...]:
        call = called(action)
        return await self._ask("step", [str(action), [call.name, call.text] if call else None], self._limit)

    async def aclose(self) -> None:
        """Ends the process, and all that it started. The box may be lost: then they have ended."""
        program, self._program = self._program, None
        if self._output is not None and hasattr(self._output, "aclose"):
            await self._output.aclose()  # type: ignore[attr-defined]
        if program is not None:
            with contextlib.suppress(SandboxError):
                await program.cancel()

    async def _start(self) -> None:
        source = self._source
        self._read.clear()
        self._astray = False
        try:
            self._program = await self._sandbox.start_command(
                ["python3", "-I", "-u", "-c", _PLAYER], stdin=True, max_output=KEPT
            )
        except SandboxError as error:
            raise EnvError(f"{source.name}: no Python could be started in its sandbox: {error}") from None
        self._output = self._program.output()
        try:
            asked = {
                "name": source.name,
                "module": source.module,
                "cls": source.cls,
                "given": source.given,
                "files": source.files,
                "options": self._options,
                "split": self._split,
            }
            json.dumps(asked)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{source.name}: options of where: sandbox are texts, numbers, lists and mappings: {error}"
            ) from None
        await self._ask("make", asked, max(self._limit, START_S))

    async def _ask(self, method: str, argument: Any, limit: float) -> Any:
        if self._program is None:
            raise EnvError(f"{self._source.name}: {method} comes after reset")
        if self._astray:
            raise EnvError(f"{self._source.name}: a call before this {method} did not come back; aclose comes first")
        self._astray = True
        try:
            async with asyncio.timeout(limit):
                reply = await self._asked(self._program, method, argument)
        except TimeoutError:
            raise EnvError(
                f"{self._source.name}: {method} did not come back from its sandbox within {limit:g} s"
            ) from None
        except SandboxError as error:
            # Its input is closed where the process has ended, and the end says more.
            raise EnvError(f"{self._source.name}: {method}: {await self._epitaph() or error}") from None
        self._astray = False
        match reply:
            case ["ok", list() | None as value]:
                return None if value is None else tuple(value)
            case ["error", str() as text]:
                raise EnvError(text)
        raise EnvError(f"{self._source.name}: {method}: what came from its sandbox is no reply: {str(reply)[:SHOWN]}")

    async def _asked(self, program: Command, method: str, argument: Any) -> Any:
        data = json.dumps([method, argument]).encode()
        await program.send_input(_HEAD.pack(len(data)) + data)
        (length,) = _HEAD.unpack(await self._taken(_HEAD.size, method))
        if length > MOST:
            raise EnvError(f"{self._source.name}: a reply of {method} is {MOST >> 20} MB at most; got {length} bytes")
        try:
            return json.loads(await self._taken(length, method))
        except (ValueError, RecursionError):
            return None

    async def _taken(self, size: int, method: str) -> bytes:
        """The next bytes that the process wrote to this side. Raises EnvError where it ended before."""
        assert self._output is not None
        while len(self._read) < size:
            chunk = await anext(self._output, None)
            if chunk is None:
                raise EnvError(f"{self._source.name}: its process ended in {method} ({await self._epitaph()})")
            if chunk.stream == "stdout":
                self._read += chunk.data
            else:
                self._said = (self._said + chunk.data)[-4 * SHOWN :]
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    async def _epitaph(self) -> str:
        """How it ended, and what it said last; "" where that cannot be known."""
        if self._program is None:
            return ""
        try:
            async with asyncio.timeout(5):
                end = await self._program.wait(output=False)
        except (SandboxError, TimeoutError) as error:
            return str(error)
        how = f"exit code {end.exit_code}" if end.outcome == "ok" else end.outcome
        said = self._said.decode(errors="replace").strip()[-SHOWN:]
        return f"{how}: {said}" if said else how
