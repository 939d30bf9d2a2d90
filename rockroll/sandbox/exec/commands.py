"""The commands of one box that stand on their own feet: started under an id, steered and read by any client.

In: a command and its id. Out: its output from any offset, its end, to whoever asks, now or later. Leaves how a command
is run to session.py and execute.py, through the callable it is given; and the record to journal.py.

    start ──► queued ──► running ──► done (kept, for 256 commands)
    An id stands for one command: sent again it is not run again. After the node's death every command that was under
    way is done: "lost", with the output that had arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from rockroll import home
from rockroll.errors import RockrollError, SandboxError, SandboxLost, SessionError, UsageError
from rockroll.sandbox.exec.feed import Feed, Tether
from rockroll.sandbox.exec.journal import Asked, Journal, Part
from rockroll.sandbox.wire import Cause, CommandInfo, Observation, Outcome, Start

KEPT = 256
"""Finished commands whose output a box keeps; the oldest goes first."""
KEPT_BYTES = 256 << 20
"""The same for the bytes of their output."""


class Runs(Protocol):
    """Runs one command to its end; cancelling it kills what the command has started."""

    def __call__(self, body: Start, tether: Tether) -> Awaitable[Observation]: ...


class Command:
    """One of them."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.tether = Tether(journal.write, None)
        self.task: asyncio.Task[None] | None = None
        self.done = asyncio.Event()
        self.error: RockrollError | None = None
        """Why it could not be run."""

    def info(self) -> CommandInfo:
        asked, end = self.journal.asked, self.journal.end
        running = self.tether.send is not None
        return CommandInfo(
            command_id=asked.command_id,
            session=asked.session,
            text=asked.text,
            state="done" if end is not None else "running" if running else "queued",
            begun=asked.begun,
            output_bytes=self.journal.size,
            outcome=end.outcome if end is not None else None,
            exit_code=end.exit_code if end is not None else None,
        )


class Commands:
    """`load` what an earlier node left, `start`, and `close` or `clear` at the end."""

    def __init__(self, box_id: str, runs: Runs, ready: Callable[[], None] = lambda: None) -> None:
        """ready: raises where the box takes no commands now."""
        self._folder = folder_of(box_id)
        self._runs, self._ready = runs, ready
        self._all: dict[str, Command] = {}

    def load(self) -> None:
        """Takes over the journals of an earlier node: what was under way there was lost with it."""
        found: list[Journal] = []
        for path in self._folder.glob("*"):
            try:
                found.append(Journal.load(path))
            except ValueError:
                path.unlink()
        for journal in sorted(found, key=lambda journal: journal.asked.begun):
            if journal.end is None:
                duration = max(0.0, path_time(journal.path) - journal.asked.begun)
                journal.finish(_ended("lost", duration, "node_lost"))
            command = self._all[journal.asked.command_id] = Command(journal)
            command.done.set()

    def start(self, body: Start) -> CommandInfo:
        """Begins a command, or finds the one that has this id. UsageError where that one is another command;
        SandboxLost, SandboxError where the box takes none now: the id is then as unused as before.
        """
        if (body.argv is None) == (body.command is None):
            raise UsageError("a command is either a line for a session (command) or a program (argv)")
        digest = _digest(body)
        if known := self._all.get(body.command_id):
            if known.journal.asked.digest != digest:
                raise UsageError(
                    f"command id {body.command_id!r} stands for another command ({known.journal.asked.text!r}): "
                    "an id is used once; leave it out to get a new one"
                )
            return known.info()
        if not 0 < len(body.command_id) <= 200:
            raise UsageError(f"a command id has 1 to 200 characters; got {len(body.command_id)}")
        self._ready()
        self._make_room()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked = Asked(
            command_id=body.command_id,
            session=None if body.argv is not None else body.session,
            text=_text(body),
            digest=digest,
            begun=time.time(),
        )
        path = self._folder / hashlib.sha256(body.command_id.encode()).hexdigest()[:32]
        command = self._all[body.command_id] = Command(Journal(path, asked))
        if body.stdin:
            command.tether.feed = Feed()
        command.task = asyncio.get_running_loop().create_task(self._run(command, body))
        return command.info()

    async def _run(self, command: Command, body: Start) -> None:
        begun = time.monotonic()
        try:
            end = await self._runs(body, command.tether)
        except asyncio.CancelledError:
            end = _ended("killed", time.monotonic() - begun)
        except SandboxLost as error:
            end = _ended("lost", time.monotonic() - begun, error.fields.get("cause"))
        except Exception as error:  # noqa: BLE001 - nobody awaits this task: whoever waits for the command is told
            command.error = error if isinstance(error, RockrollError) else SandboxError(f"{body.command_id}: {error!r}")
            end = _ended("killed", time.monotonic() - begun)
        command.tether.send = None
        if command.tether.feed:
            command.tether.feed.over()
        command.journal.finish(end)
        command.done.set()

    def _make_room(self) -> None:
        done = [command for command in self._all.values() if command.done.is_set()]
        size = sum(command.journal.size for command in done)
        for number, command in enumerate(done):
            if len(done) - number < KEPT and size <= KEPT_BYTES:
                return
            size -= command.journal.size
            command.journal.close(remove=True)
            del self._all[command.journal.asked.command_id]

    def _get(self, command_id: str) -> Command:
        try:
            return self._all[command_id]
        except KeyError:
            last = ", ".join(list(self._all)[-5:]) or "none"
            raise SessionError(
                f"no command {command_id!r} in this sandbox; the last ones are: {last} ({KEPT} are kept)"
            ) from None

    def list(self) -> list[CommandInfo]:
        return [command.info() for command in self._all.values()]

    def busy(self) -> bool:
        """Whether any is under way."""
        return any(not command.done.is_set() for command in self._all.values())

    async def wait(self, command_id: str, output: bool = True) -> Observation:
        """Its end, with its output unless the caller has that. Cancelling this leaves the command alone.

        Raises what kept it from running.
        """
        command = self._get(command_id)
        await command.done.wait()
        if command.error:
            raise command.error
        if not output and command.journal.end is not None:
            return command.journal.end
        return await command.journal.observation()

    async def output(self, command_id: str, offset: int, follow: bool) -> AsyncIterator[Part]:
        """What it printed from `offset` on, in order of arrival; with follow, as it comes, to its end."""
        journal = self._get(command_id).journal
        if offset < 0 or (offset > journal.size and (journal.end is not None or not follow)):
            raise UsageError(f"offset: from 0 to the {journal.size} bytes that there are; got {offset}")
        if follow:
            async for part in journal.follow(offset):
                yield part
            return
        while part := journal.read(offset):
            yield part
            offset += len(part.data)

    async def send_input(self, command_id: str, data: bytes, end: bool) -> None:
        """Bytes for its standard input; `end` closes it after them."""
        feed = self._get(command_id).tether.feed
        if feed is None:
            raise SessionError(f"command {command_id!r} reads /dev/null: start it with stdin=True to send it input")
        if data:
            await feed.write(data)
        if end:
            await feed.close()

    def send_signal(self, command_id: str, number: int) -> None:
        """A signal to what it has started. SessionError where it is not running."""
        if number not in signal.valid_signals():
            raise UsageError(f"no signal has the number {number}")
        command = self._get(command_id)
        if command.tether.send is None:
            raise SessionError(f"command {command_id!r} is {command.info().state}: only a running one gets signals")
        command.tether.send(number)

    async def cancel(self, command_id: str) -> Observation:
        """Kills it and all it has started; its outcome is then "killed", unless it had ended by itself."""
        command = self._get(command_id)
        if command.task is not None:
            command.task.cancel()
        await command.done.wait()
        return await command.journal.observation()

    async def clear(self) -> None:
        """Ends all and forgets them: the box's next user must not see them."""
        await self._end_all(remove=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def close(self) -> None:
        """Ends all; the records stay for the next node."""
        await self._end_all(remove=False)

    async def _end_all(self, *, remove: bool) -> None:
        tasks = [command.task for command in self._all.values() if command.task and not command.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for command in self._all.values():
            command.journal.close(remove=remove)
        self._all.clear()


def folder_of(box_id: str) -> Path:
    """Where the records of a box's commands are."""
    return home.node_dir() / "commands" / box_id


def path_time(path: Path) -> float:
    return path.stat().st_mtime


def _ended(outcome: Outcome, seconds: float, cause: Cause | None = None) -> Observation:
    return Observation(stdout=b"", stderr=b"", exit_code=None, outcome=outcome, duration_s=seconds, cause=cause)


def _text(body: Start) -> str:
    whole = " ".join(body.argv) if body.argv is not None else (body.command or b"").decode("utf-8", "replace")
    first, _, more = whole.strip().partition("\n")
    return first[:120] + (" ..." if more or len(first) > 120 else "")


def _digest(body: Start) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(msgspec.structs.replace(body, id=""))).digest()
