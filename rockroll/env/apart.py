"""Environments in processes of their own: what hangs or crashes there is an EnvError here, and nothing else is hurt.

In: a task's name and options. Out: an Env with async methods, played in a worker process. Leaves what an episode is to
the rollout room, and many environments in one process to rows.py.

    take ──► make ──► reset ──► step … ──► idle ──► the next episode's
               └──────────┴────────┴── hang, crash, cancelled in the middle ──► killed; another is started when needed

A worker plays one episode at a time, and is kept for the next one. A message is its length in four bytes, then msgpack:
[method, arguments] there, ["ok", value] or ["error", text] back. What the environment prints goes to a file of which an
error shows the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Any, NoReturn

import msgspec

from rockroll import child
from rockroll.env.api import Action, as_given, called, read_reset, read_step, read_tools
from rockroll.env.registry import make
from rockroll.env.rows import Rows
from rockroll.errors import EnvError, RockrollError

START_S = 60.0
"""Seconds at least for the first call, which waits for Python to start and the environment's libraries to load."""
SHOWN = 400
"""Characters of what a worker said last, in the error of one that died."""
_HEAD = struct.Struct("!I")


class Workers:
    """Worker processes, started when one is needed and kept for the next episode. `close` at the end."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        """Of killed ones, until the kernel has told of their end."""

    @property
    def pids(self) -> list[int]:
        """Of the processes that live."""
        return [worker.pid for worker in self._all]

    async def take(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            self.drop(worker)  # it died while nothing was asked of it
        worker = await Worker.start()
        self._all.add(worker)
        return worker

    def give(self, worker: Worker) -> None:
        self._idle.append(worker)

    def drop(self, worker: Worker) -> None:
        worker.kill()
        self._all.discard(worker)
        ending = asyncio.ensure_future(worker.gone())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Kills all of them, and returns when they are gone."""
        for worker in list(self._all):
            self.drop(worker)
        self._idle.clear()
        await asyncio.gather(*self._ending)


class ApartEnv:
    """An Env whose `reset` and `step` are played in a worker. EnvError for what it raises, a hang, a crash."""

    def __init__(self, workers: Workers, name: str, options: Mapping[str, Any], limit: float = 60.0) -> None:
        """limit: seconds that one `reset` or `step` may take; then it hangs."""
        self._workers, self._name, self._options, self._limit = workers, name, dict(options), limit
        self._worker: Worker | None = None

    async def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        if self._worker is None:
            self._worker = await self._workers.take()
            try:
                await self._ask("make", self._name, self._options)
            except BaseException:
                self.close()  # it has an earlier episode's environment, or none: no reset is to reach that
                raise
        observation, system, tools = await self._ask("reset", seed)
        said = {"system": system, "tools": tools}
        return observation, {name: value for name, value in said.items() if value}

    async def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated = await self._ask("step", sent(action))
        return observation, reward, terminated, truncated, {}

    def close(self) -> None:
        """The worker is free for another episode; one with a call under way is killed."""
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        if worker.astray or not worker.alive:
            self._workers.drop(worker)
        else:
            self._workers.give(worker)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        if self._worker is None:
            raise EnvError(f"{self._name}: {method} comes after reset")
        limit = max(self._limit, START_S) if method == "make" else self._limit
        try:
            return await self._worker.told(self._name, limit, method, *arguments)
        finally:
            if self._worker is not None and self._worker.astray:
                self.close()  # the answer that is still to come would be taken for the next call's


class Worker:
    """One process, and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        way: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        log: IO[bytes],
    ) -> None:
        self._process, (self._reader, self._writer), self._log = process, way, log
        self.pid = process.pid
        self.astray = False
        """A call did not come back: nothing it says from now on can be told from that call's answer."""

    @classmethod
    async def start(cls) -> Worker:
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "rockroll.env.apart", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # so that what the environment starts is killed with it
                )
            return cls(process, await asyncio.open_unix_connection(sock=ours), log)
        except BaseException:
            ours.close()
            log.close()
            raise

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        """Raises EOFError or OSError where the process is gone."""
        self._writer.write(_packed([method, list(arguments)]))
        await self._writer.drain()
        (length,) = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
        return msgspec.msgpack.decode(await self._reader.readexactly(length), type=tuple[str, Any])

    async def told(self, name: str, limit: float, method: str, *arguments: Any) -> Any:
        """What came of that call. EnvError for what was raised, and for an end or no answer within `limit` seconds, of
        which only the process's end is a way out."""
        self.astray = True
        try:
            async with asyncio.timeout(limit):
                said, value = await self.ask(method, arguments)
        except TimeoutError:
            raise EnvError(f"{name}: {method} did not come back within {limit:g} s; its process was killed") from None
        except (EOFError, OSError):
            raise EnvError(f"{name}: its process ended in {method} ({await self.epitaph()})") from None
        self.astray = False
        if said == "error":
            raise EnvError(value)
        return value

    async def epitaph(self) -> str:
        """How it ended, and what it said last."""
        self.kill()
        code = await self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - SHOWN))
        said = self._log.read().decode(errors="replace").strip()
        return f"{how}: {said}" if said else how

    def kill(self) -> None:
        """It, and what it started."""
        if self.alive:  # not reaped: its number is nobody else's
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._writer.close()

    async def gone(self) -> None:
        await self._process.wait()
        self._log.close()


def _packed(message: list[Any]) -> bytes:
    data = msgspec.msgpack.encode(message)
    return _HEAD.pack(len(data)) + data


def sent(action: str) -> list[bytes]:
    """The text, and of a tool call its name and arguments: what models write may be no Unicode that msgpack takes."""
    call = called(action)
    return [part.encode("utf-8", "surrogatepass") for part in (action, *((call.name, call.text) if call else ()))]


# ---- the worker's side ---------------------------------------------------------------------------------------------


def serve(fd: int) -> NoReturn:
    """Plays what is asked for on that socket until its other end is closed."""
    child.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the run decides
    way = socket.socket(fileno=fd).makefile("rwb")
    env: Any = None
    with asyncio.Runner() as runner:
        while len(head := way.read(_HEAD.size)) == _HEAD.size:
            method, arguments = msgspec.msgpack.decode(way.read(_HEAD.unpack(head)[0]))
            try:
                if method == "make":
                    _shut(env)
                    env, value = make(arguments[0], **arguments[1]), None
                elif method == "make_rows":
                    _shut(env)
                    env, value = Rows(arguments[0], arguments[1], *arguments[2:]), None
                elif isinstance(env, Rows):
                    value = _rows_played(env, method, arguments, runner)
                else:
                    value = _played(env, method, arguments[0], runner)
                reply = _packed(["ok", value])
            except RockrollError as error:
                reply = _packed(["error", str(error)])
            except Exception as error:  # noqa: BLE001  whatever the environment raises is told as it is
                reply = _packed(["error", f"{type(env).__name__}.{method} raised {type(error).__name__}: {error}"])
            way.write(reply)
            way.flush()
    child.leave(0)


def _played(env: Any, method: str, argument: Any, runner: asyncio.Runner) -> Any:
    if method == "reset":
        observation, info = read_reset(_awaited(env.reset(seed=argument), runner))
        system = info.get("system")
        return as_given(observation), system if isinstance(system, str) else None, read_tools(info)
    text, *call = (each.decode("utf-8", "surrogatepass") for each in argument)
    step = read_step(_awaited(env.step(Action.of(text, (call[0], call[1]) if call else None)), runner))
    return as_given(step.observation), step.reward, step.terminated, step.truncated


def _rows_played(rows: Rows, method: str, arguments: list[Any], runner: asyncio.Runner) -> Any:
    if method == "reset":
        observations, infos = rows.now(rows.reset(*arguments), runner)
        return observations, list(map(_plain, infos))
    actions = [
        Action.of(text, (call[0], call[1]) if call else None)
        for text, *call in ([each.decode("utf-8", "surrogatepass") for each in said] for said in arguments[0])
    ]
    *values, infos = rows.now(rows.step(actions), runner)
    return *values, list(map(_plain, infos))


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """What of it can travel."""
    kept = {}
    for name, value in info.items():
        try:
            msgspec.msgpack.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            continue
        kept[str(name)] = value
    return kept


def _awaited(result: Any, runner: asyncio.Runner) -> Any:
    if not hasattr(result, "__await__"):
        return result

    async def wait() -> Any:
        return await result

    return runner.run(wait())


def _shut(env: Any) -> None:
    """The episode before the next one; what it raises at its end is nobody's any more."""
    try:
        if callable(shut := getattr(env, "close", None)):
            shut()
    except Exception as error:  # noqa: BLE001
        print(f"close raised {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
