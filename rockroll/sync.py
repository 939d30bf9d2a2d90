"""The same names as `rockroll`, blocking: for scripts, notebooks and code without an event loop.

In: calls from any thread. Out: what the async method returns or raises. One background thread with one event loop does
the work; every method here is its async namesake, wrapped, with the same arguments and docstring.

    from rockroll.sync import Sandbox
    with Sandbox() as sandbox:
        print(sandbox.arun("ls /").output)
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from rockroll.agent import upstream
from rockroll.sandbox import client
from rockroll.sandbox import warm_pools as async_warm_pools
from rockroll.sandbox.client import Sandbox as AsyncSandbox
from rockroll.sandbox.command import Command as AsyncCommand
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.forward import Address
from rockroll.sandbox.node_client import close_node
from rockroll.sandbox.pool import Pool as AsyncPool
from rockroll.sandbox.where import Cluster
from rockroll.sandbox.wire import DEFAULT_SESSION, Observation, Owner, PoolInfo, Restored, SandboxInfo, SnapshotInfo

__all__ = [
    "Command",
    "Observation",
    "Pool",
    "Restored",
    "Sandbox",
    "SandboxConfig",
    "SandboxInfo",
    "SnapshotInfo",
    "delete_snapshot",
    "list_sandboxes",
    "snapshots",
    "use_model",
]
P = ParamSpec("P")
T = TypeVar("T")


class _Background:
    """One event loop in a daemon thread, started on first use, ended with the process. A forked child gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work` in the background loop. Ctrl-C here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(target=self._loop.run_forever, name="rockroll-sync", daemon=True)
                self._thread.start()
                atexit.register(self._close)
            return self._loop

    def _close(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or self._pid != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(_wind_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self._loop = None


async def _wind_up() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await close_node()


_background = _Background()


def _blocking(method: Callable[Concatenate[Any, P], Awaitable[T]]) -> Callable[Concatenate[Any, P], T]:
    """The method of the wrapped async object, run to its end."""

    @functools.wraps(method)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return _background.run(_as_coroutine(method(self._wrapped, *args, **kwargs)))

    return call


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work


def _iterating(method: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The items of an async generator method, as they come."""

    @functools.wraps(method)
    def iterate(self: Any, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self._wrapped, *args, **kwargs)
        try:
            while True:
                try:
                    item = _background.run(_as_coroutine(anext(items)))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _background.run(_aclose(items))

    return iterate


@functools.wraps(client.list_sandboxes)
def list_sandboxes(*args: Any, **kwargs: Any) -> list[SandboxInfo]:
    return _background.run(client.list_sandboxes(*args, **kwargs))


async def _aclose(items: Any) -> None:
    await items.aclose()


class Sandbox:
    """`rockroll.Sandbox`, blocking; `with` instead of `async with`."""

    def __init__(
        self,
        config: SandboxConfig | None = None,
        *,
        owner: Owner = "connection",
        outlives_node: bool = True,
        base_url: str | None = None,
        token: str | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self._wrapped = AsyncSandbox(
            config, owner=owner, outlives_node=outlives_node, base_url=base_url, token=token, cluster=cluster
        )

    @classmethod
    def attach(
        cls,
        sandbox_id: str,
        *,
        base_url: str | None = None,
        token: str | None = None,
        cluster: Cluster | None = None,
    ) -> Self:
        """As rockroll.Sandbox.attach."""
        return cls._of(
            _background.run(AsyncSandbox.attach(sandbox_id, base_url=base_url, token=token, cluster=cluster))
        )

    @classmethod
    def _of(cls, wrapped: AsyncSandbox) -> Self:
        sandbox = cls.__new__(cls)
        sandbox._wrapped = wrapped
        return sandbox

    info = property(lambda self: self._wrapped.info)
    id = property(lambda self: self._wrapped.id)
    name = property(lambda self: self._wrapped.name)
    connected = property(lambda self: self._wrapped.connected)
    config = property(lambda self: self._wrapped.config)
    owner = property(lambda self: self._wrapped.owner)

    ask = _blocking(AsyncSandbox.ask)
    start_when_there_is_room = _blocking(AsyncSandbox.start_when_there_is_room)
    arun = _blocking(AsyncSandbox.arun)
    execute = _blocking(AsyncSandbox.execute)
    commands = _blocking(AsyncSandbox.commands)
    _start_command = _blocking(AsyncSandbox.start_command)
    create_session = _blocking(AsyncSandbox.create_session)
    close_session = _blocking(AsyncSandbox.close_session)
    write_file = _blocking(AsyncSandbox.write_file)
    read_file = _blocking(AsyncSandbox.read_file)
    list_files = _blocking(AsyncSandbox.list_files)
    stat = _blocking(AsyncSandbox.stat)
    exists = _blocking(AsyncSandbox.exists)
    mkdir = _blocking(AsyncSandbox.mkdir)
    remove = _blocking(AsyncSandbox.remove)
    move = _blocking(AsyncSandbox.move)
    upload = _blocking(AsyncSandbox.upload)
    download = _blocking(AsyncSandbox.download)
    watch = _iterating(AsyncSandbox.watch)
    logs = _iterating(AsyncSandbox.logs)
    stats = _blocking(AsyncSandbox.stats)
    processes = _blocking(AsyncSandbox.processes)
    signal = _blocking(AsyncSandbox.signal)
    env = _blocking(AsyncSandbox.env)
    set_env = _blocking(AsyncSandbox.set_env)
    refresh = _blocking(AsyncSandbox.refresh)
    network = _blocking(AsyncSandbox.network)
    recycle = _blocking(AsyncSandbox.recycle)
    snapshot = _blocking(AsyncSandbox.snapshot)
    _fork = _blocking(AsyncSandbox.fork)
    stop = _blocking(AsyncSandbox.stop)
    restore = _blocking(AsyncSandbox.restore)
    restart = _blocking(AsyncSandbox.restart)
    delete = _blocking(AsyncSandbox.delete)
    _start = _blocking(AsyncSandbox.start)
    _enter = _blocking(AsyncSandbox.__aenter__)
    _exit = _blocking(AsyncSandbox.__aexit__)

    @functools.wraps(AsyncSandbox.start_command)
    def start_command(self, *args: Any, **kwargs: Any) -> Command:
        return Command(self._start_command(*args, **kwargs))

    def command(self, command_id: str) -> Command:
        """As rockroll.Sandbox.command."""
        return Command(self._wrapped.command(command_id))

    def start(self) -> Self:
        """As rockroll.Sandbox.start."""
        self._start()
        return self

    def fork(self, *, name: str | None = None, owner: Owner | None = None) -> Self:
        """As rockroll.Sandbox.fork."""
        return self._of(self._fork(name=name, owner=owner))

    @contextlib.contextmanager
    def forward(self, port: int, **options: Any) -> Iterator[Address]:
        """As rockroll.Sandbox.forward."""
        forward = self._wrapped.forward(port, **options)
        place = _background.run(forward.__aenter__())
        try:
            yield place
        finally:
            _background.run(forward.__aexit__())

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(self, *error: object) -> None:
        self._exit(*error)

    def __repr__(self) -> str:
        return repr(self._wrapped)


def snapshots(*, base_url: str | None = None, token: str | None = None) -> list[SnapshotInfo]:
    """As rockroll.sandbox.client.snapshots."""
    return _background.run(client.snapshots(base_url=base_url, token=token))


def delete_snapshot(name: str, *, base_url: str | None = None, token: str | None = None) -> SnapshotInfo:
    """As rockroll.sandbox.client.delete_snapshot."""
    return _background.run(client.delete_snapshot(name, base_url=base_url, token=token))


def use_model(sandbox: Sandbox | str, url: str | None, **options: Any) -> None:
    """As `rockroll.use_model`."""
    _background.run(upstream.use_model(sandbox if isinstance(sandbox, str) else sandbox.id, url, **options))


@functools.wraps(async_warm_pools.set_warm_pool)
def set_warm_pool(*args: Any, **kwargs: Any) -> PoolInfo:
    return _background.run(async_warm_pools.set_warm_pool(*args, **kwargs))


@functools.wraps(async_warm_pools.warm_pools)
def warm_pools(*args: Any, **kwargs: Any) -> list[PoolInfo]:
    return _background.run(async_warm_pools.warm_pools(*args, **kwargs))


@functools.wraps(async_warm_pools.delete_warm_pool)
def delete_warm_pool(*args: Any, **kwargs: Any) -> PoolInfo:
    return _background.run(async_warm_pools.delete_warm_pool(*args, **kwargs))


class Command:
    """`rockroll.sandbox.command.Command`, blocking."""

    def __init__(self, wrapped: AsyncCommand) -> None:
        self._wrapped = wrapped

    id = property(lambda self: self._wrapped.id)
    output = _iterating(AsyncCommand.output)
    wait = _blocking(AsyncCommand.wait)
    cancel = _blocking(AsyncCommand.cancel)
    send_input = _blocking(AsyncCommand.send_input)
    close_input = _blocking(AsyncCommand.close_input)
    send_signal = _blocking(AsyncCommand.send_signal)
    info = _blocking(AsyncCommand.info)

    def __repr__(self) -> str:
        return repr(self._wrapped)


class Pool:
    """`rockroll.sandbox.pool.Pool`, blocking; `with pool.lease() as sandbox`, from any thread."""

    def __init__(
        self,
        config: SandboxConfig | None = None,
        size: int = 8,
        *,
        session: str | None = DEFAULT_SESSION,
        cluster: Cluster | None = None,
        waits: bool = False,
    ) -> None:
        self._wrapped = AsyncPool(config, size, session=session, cluster=cluster, waits=waits)

    warm = property(lambda self: self._wrapped.warm)
    size = property(lambda self: self._wrapped.size)
    config = property(lambda self: self._wrapped.config)
    _start = _blocking(AsyncPool.start)
    close = _blocking(AsyncPool.close)

    def start(self) -> Self:
        """As Pool.start."""
        self._start()
        return self

    @contextlib.contextmanager
    def lease(self) -> Iterator[Sandbox]:
        """As Pool.lease."""
        lease = self._wrapped.lease()
        sandbox = _background.run(lease.__aenter__())
        try:
            yield Sandbox._of(sandbox)
        finally:
            _background.run(lease.__aexit__(None, None, None))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
