"""The node's sandboxes: every method of wire.py.

In: rpc calls. Out: their replies. Leaves one box's life to box.py, and models to the hooks that the node passes in.

Every box has an owner. A `connection` box goes when the rpc connection that made it ends, however it ends; a `detached`
one when it is deleted or its TTL is over. A node that starts takes over what a dead one left: the detached boxes, and
those whose owner's process lives, until it claims them or ends. Their init and files live on, their sessions come back
on next use. The rest is removed; how each box ended stays in the registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import inspect
import logging
import os
import resource
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from socket import socket as Socket
from typing import Any

from rockroll import home, rpc
from rockroll.errors import (
    ImageMissing,
    LimitNotEnforced,
    RockrollError,
    SandboxLost,
    SandboxNotFound,
    UsageError,
)
from rockroll.sandbox import disk, layer, processes, runtime, saved, wire
from rockroll.sandbox.box import Box
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.endpoint import Endpoint
from rockroll.sandbox.file_methods import FileMethods
from rockroll.sandbox.lifecycle import story
from rockroll.sandbox.names import INSIDE, container_name, make_folder
from rockroll.sandbox.oci_exec import Runtime
from rockroll.sandbox.podman import HOME_LABEL, Podman, PodmanService
from rockroll.sandbox.process import Process, become_subreaper, birth
from rockroll.sandbox.profile import create_body, first_id, remove_cgroups
from rockroll.sandbox.reaper import Reaper
from rockroll.sandbox.registry import Registry, Row
from rockroll.sandbox.signals import number_of
from rockroll.sandbox.snapshot import Fill, Snapshots
from rockroll.sandbox.spawner import Spawner

ID_LABEL = "rockroll.id"
CREATES_AT_ONCE = 4
"""With more at once on two cores no box is ready sooner (22-25 a second at 4 and at 8)."""
REMOVE_AGAIN_S = 60.0
"""A box whose time is over or whose owner is gone, and which Podman could not remove, is tried again after this."""
_VERSION = importlib.metadata.version("rockroll")
_log = logging.getLogger(__name__)


class SandboxHost:
    """`await start()`, serve `handlers()` and `on_disconnect`, `await close()`.

    endpoint_port, on_endpoint: a socket listening on 127.0.0.1:port inside each box, handed over with the box's id
    before the box's first command and again after each restart. on_endpoint_gone: the box has ended, and may
    come back. on_removed: it will not. env: variables for a box that is being made, by its id.
    """

    def __init__(
        self,
        *,
        endpoint_port: int | None = None,
        on_endpoint: Callable[[str, Socket], Awaitable[None]] | None = None,
        on_endpoint_gone: Callable[[str], None] | None = None,
        on_removed: Callable[[str], None] | None = None,
        env: Callable[[str], Mapping[str, str]] | None = None,
    ) -> None:
        self._endpoint = Endpoint(endpoint_port, on_endpoint, on_endpoint_gone)
        self._on_removed = on_removed or (lambda _: None)
        self._env = env or (lambda _: {})
        self._service = PodmanService(record=home.node_dir() / "podman.pid", revive=True)
        self._podman: Podman
        self._runtime: Runtime
        self._registry: Registry
        self._snapshots: Snapshots
        self._rootless = False
        self._boxes: dict[str, Box] = {}
        self._owned: dict[str, set[str]] = {}
        self._ttl: dict[str, asyncio.TimerHandle] = {}
        self._idle: dict[str, asyncio.TimerHandle] = {}
        self._owners: dict[str, Process] = {}
        """The processes of owners whose boxes an earlier node made, until they claim them."""
        self._creating = asyncio.Semaphore(CREATES_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._removing: dict[str, asyncio.Task[None]] = {}
        self._reaper = Reaper()
        self._spawner = Spawner()
        self._files = FileMethods(self._box)

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """Method name → handler, for rpc.Server(types=wire.BODIES)."""
        handlers = {
            "sandbox.create": self._create,
            "sandbox.list": self._list,
            "sandbox.get": self._get,
            "sandbox.claim": self._claim,
            "sandbox.restore": self._restore,
            "sandbox.stop": self._stop,
            "sandbox.start": self._start,
            "sandbox.delete": self._delete,
            "sandbox.stats": self._stats,
            "sandbox.recycle": self._recycle,
            "sandbox.snapshot": self._snapshot,
            "sandbox.fork": self._fork,
            "snapshot.list": self._list_snapshots,
            "snapshot.delete": self._delete_snapshot,
            "sandbox.processes": self._processes,
            "sandbox.signal": self._signal,
            "sandbox.env": self._get_env,
            "sandbox.set_env": self._set_env,
            "sandbox.terminal": self._terminal,
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
            **self._files.handlers(),
            "logs": self._logs,
            "node.info": self._info,
        }
        return {method: self._in_use(method, handler) for method, handler in handlers.items()}

    def _in_use(self, method: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler; where it works on a box, that box is in use from the call to its end."""
        if "id" not in wire.BODIES[method].__struct_fields__:
            return handler
        if not inspect.isasyncgenfunction(handler):

            async def answer(body: Any, peer: rpc.Peer, *parts: Any) -> Any:
                with self._box(body.id).calls:
                    return await handler(body, peer, *parts)

            return answer

        async def stream(body: Any, peer: rpc.Peer) -> AsyncIterator[Any]:
            with self._box(body.id).calls:
                async with contextlib.aclosing(handler(body, peer)) as items:
                    async for item in items:
                        try:
                            yield item
                        except asyncio.CancelledError as stop:
                            # The handler's to catch, as if nobody stood between it and the server.
                            with contextlib.suppress(StopAsyncIteration):
                                await items.athrow(stop)
                            return

        return stream

    # -- life of the host

    async def start(self) -> None:
        """Podman up, the leavings of an earlier node swept or adopted. Raises HostError with the cure."""
        _raise_file_limit()
        detected = await asyncio.to_thread(runtime.detect)
        become_subreaper()  # after the probe, whose orphans nobody here would wait for
        self._rootless = detected.rootless
        environment = dict(detected.environment())
        self._runtime = Runtime(detected.binary, detected.state_root, environment, detected.runtime)
        self._podman = await self._service.start()
        self._reaper.start()
        self._registry = Registry(home.node_dir() / "registry.sqlite")
        self._snapshots = Snapshots()
        await self._take_over()

    async def _take_over(self) -> None:
        found = await self._podman.list({HOME_LABEL: home.home_id()})
        containers = {str(entry["Labels"].get(ID_LABEL, "")): entry for entry in found}
        for row in self._registry.rows():
            owned = row.owner == "detached" or birth(row.owner_pid) == row.owner_birth != 0
            if row.id in containers and owned and row.state != "starting":
                del containers[row.id]
                await self._adopt(row)
            else:
                self._registry.drop(row.id, "node_lost" if owned else "owner_gone", time.time())
        removals = [self._podman.remove(entry["Id"]) for entry in containers.values()]
        for error in await asyncio.gather(*removals, return_exceptions=True):
            if isinstance(error, BaseException):  # one that resists is no reason to serve nobody
                _log.error("a container of an earlier node could not be removed: %s", error)
        for entry in containers.values():
            remove_cgroups(entry["Id"])
        for folder in (home.runtime_dir() / "b").glob("*"):
            if folder.name not in self._boxes:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        for folder in home.runtime_dir().glob("tty-*-*"):  # of a `rockroll debug` that was killed
            if not birth(int(folder.name.split("-")[1])):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        for folder in (home.node_dir() / "commands").glob("*"):
            if folder.name not in self._boxes:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await disk.whole(lambda: disk.sweep(self._boxes))
        await self._snapshots.sweep()
        for spool in (home.node_dir() / "spool").glob("*"):
            if spool.stem not in self._boxes:
                spool.unlink(missing_ok=True)
        for folder in saved.folder().glob("*"):
            if folder.name not in self._boxes:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _adopt(self, row: Row) -> None:
        box = self._make_box(row)
        self._boxes[row.id] = box
        box.commands.load()
        try:
            await box.life.adopt(row.container, row.state, row.cause, row.ended)
        except SandboxNotFound:
            await self._discard(box, "node_lost")
            return
        if row.owner == "connection":
            try:
                self._watch_owner(row)
            except ProcessLookupError:
                await self._discard(box, "owner_gone")
                return
        self._watch_ttl(box)

    async def _discard(self, box: Box, cause: wire.Cause) -> None:
        """One that resists is no reason to serve nobody."""
        try:
            await self._remove(box, cause)
        except RockrollError as error:
            _log.error("sandbox %s of an earlier node could not be removed: %s", box.id, error)

    def _watch_owner(self, row: Row) -> None:
        """ProcessLookupError where it has just ended."""
        owner = self._owners[row.id] = Process(row.owner_pid)
        if birth(row.owner_pid) != row.owner_birth:
            raise ProcessLookupError("its owner has just ended")

        def ended(_: object) -> None:
            if box := self._boxes.get(row.id):
                self._spawn(self._remove(box, "owner_gone"))

        owner.ended.add_done_callback(ended)

    def _make_box(self, row: Row) -> Box:
        return Box(
            id=row.id,
            name=row.name,
            config=_config(row.config),
            owner=row.owner,
            created=row.created,
            env=self._env(row.id),
            podman=self._podman,
            runtime=self._runtime,
            spawner=self._spawner,
            endpoint=self._endpoint,
            changed=lambda status: self._registry.mark(status.id, status.state, status.cause, status.ended),
        )

    def next_end(self) -> float | None:
        """Unix time at which the first of the boxes that outlive this node must go; None for never."""
        now = time.time()
        detached = [box for box in self._boxes.values() if box.owner == "detached"]
        ends = [box.created + box.config.ttl_s for box in detached if box.config.ttl_s is not None]
        ends += [now + box.config.idle_ttl_s for box in detached if box.config.idle_ttl_s is not None]
        return min(ends, default=None)

    async def close(self) -> None:
        """Connection boxes are deleted, detached ones left running for the next node. Raises where a box could not be
        removed: then there is something left for a next node to do."""
        for timer in (*self._ttl.values(), *self._idle.values()):
            timer.cancel()
        for owner in self._owners.values():
            owner.forget()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A removal whose caller is gone is seen to its end: a box half removed cannot be left to the next node.
        await asyncio.gather(*self._removing.values(), return_exceptions=True)
        boxes = list(self._boxes.values())
        done = await asyncio.gather(
            *(self._remove(box, "node_lost") if box.owner == "connection" else box.life.leave() for box in boxes),
            return_exceptions=True,
        )
        self._reaper.close()
        self._files.close()
        self._spawner.close()
        await self._service.close()
        self._registry.close()
        become_subreaper(False)  # nobody here waits for orphans any more
        for error in done:
            if isinstance(error, BaseException):
                raise error

    async def on_disconnect(self, peer: rpc.Peer) -> None:
        """The owner of connection boxes is gone: so are they."""
        boxes = [self._boxes[id] for id in self._owned.pop(peer.id, ()) if id in self._boxes]
        done = await asyncio.gather(*(self._remove(box, "owner_gone") for box in boxes), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                _log.error("a sandbox of a gone client could not be removed: %s", error)

    def count(self) -> int:
        """Sandboxes there are, running or not, or being made."""
        return len(self._boxes)

    def resolve(self, id: str) -> str:
        """The full id of an id, a unique prefix of one, or a name. Raises SandboxNotFound."""
        return self._box(id).id

    def _box(self, id: str) -> Box:
        box = self._find(id)
        box.calls.last = time.monotonic()
        return box

    def _find(self, id: str) -> Box:
        if box := self._boxes.get(id):
            return box
        named = [box for box in self._boxes.values() if box.name == id]
        matching = named or [box for box in self._boxes.values() if id and box.id.startswith(id)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise SandboxNotFound(f"{id!r} begins the ids of {len(matching)} sandboxes; give more of it")
        if id and (row := self._registry.last_gone(id)):
            raise SandboxNotFound(
                f"sandbox {id!r} is gone; {story(row.cause, row.ended)}; `rockroll sandbox ls --all` lists what was",
                cause=row.cause,
                ended=row.ended,
            )
        raise SandboxNotFound(f"no sandbox {id!r}; `rockroll sandbox ls` lists those there are")

    # -- sandbox.*

    async def _create(self, body: wire.Create, peer: rpc.Peer) -> wire.SandboxInfo:
        config = _config(body.config)
        if config.snapshot is None:
            return await self._make(config, body.owner, peer)
        async with self._snapshots.files(config.snapshot) as files:
            image = await self._image_under(self._snapshots.get(config.snapshot), config)
            config = dataclasses.replace(config, image=self._snapshots.get(config.snapshot).image)
            return await self._make(config, body.owner, peer, image, lambda upper: layer.copy(files, upper))

    async def _image_under(self, snapshot: wire.SnapshotInfo, config: SandboxConfig) -> str:
        """The id of the image that a box with this config and these files stands on. UsageError, ImageMissing."""
        if not await self._podman.image_exists(snapshot.image_id):
            raise ImageMissing(
                f"snapshot {snapshot.name!r} stands on {snapshot.image} ({snapshot.image_id[:12]}), which is no longer"
                " in the local store; bring that very image back, or remove the snapshot"
            )
        if config.image and (await self._podman.image_inspect(config.image))["Id"] != snapshot.image_id:
            raise UsageError(
                f"image: snapshot {snapshot.name!r} stands on {snapshot.image} ({snapshot.image_id[:12]}), not on"
                f" {config.image}; leave the image out"
            )
        if first_id(config) != snapshot.first_id:
            raise UsageError(
                f"mounts: snapshot {snapshot.name!r} was taken {'with' if snapshot.first_id else 'without'} a user"
                " namespace, and a sandbox has one only where none of its mounts is writable: its files would belong to"
                " nobody; use mounts of the same kind"
            )
        return snapshot.image_id

    async def _make(
        self, config: SandboxConfig, owner: wire.Owner, peer: rpc.Peer, image: str = "", fill: Fill | None = None
    ) -> wire.SandboxInfo:
        """image, fill: an image in place of the config's, and what copies the first files."""
        id = secrets.token_hex(6)
        name = config.name or f"box-{id}"
        if any(box.name == name for box in self._boxes.values()):
            raise UsageError(f"name: a sandbox named {name!r} exists; delete it or choose another name")
        row = Row(id, name, dataclasses.asdict(config), owner, "", time.time())
        if owner == "connection" and peer.pid:
            row = row._replace(owner_pid=peer.pid, owner_birth=birth(peer.pid))
        box = self._boxes[id] = self._make_box(row)
        self._registry.put(row)
        try:
            async with self._creating, box.life.being_made():
                await self._bring_up(box, row, image, fill)
            if id in self._removing or box.state == "gone":
                raise SandboxLost(f"sandbox {id} was deleted while it was being made", cause=box.cause)
        except BaseException:
            # Whatever there is of it goes, also when this task is being cancelled.
            await asyncio.shield(self._spawn(self._remove(box)))
            raise
        self._registry.mark(id, box.state, box.cause, box.status.ended)
        if owner == "connection":
            self._owned.setdefault(peer.id, set()).add(id)
        self._watch_ttl(box)
        return box.info()

    async def _bring_up(self, box: Box, row: Row, image: str, fill: Fill | None) -> None:
        folder = make_folder(box.id)
        mounts = await box.hull.writable.make_disk()
        options = ["bind", "ro", "nosuid", "nodev", "noexec"]
        request = create_body(
            box.config,
            name=container_name(box.id),
            env=self._env(box.id),
            labels={ID_LABEL: box.id, **({disk.LABEL: "1"} if mounts else {})},
            mounts=[
                {"type": "bind", "source": str(folder), "destination": INSIDE, "options": options},
                *box.hull.share.prepare(),
                *mounts,
            ],
        )
        request["image"] = image or request["image"]
        creating = asyncio.ensure_future(self._podman.create(request))
        try:
            box.hull.container = await asyncio.shield(creating)
        except asyncio.CancelledError:
            self._spawn(self._undo(creating))
            raise
        await box.life.up(fill)
        self._registry.put(row._replace(container=box.container))
        unenforced = [limit for limit in box.unenforced if limit != "kill-scope"]
        if unenforced and not box.config.allow_unenforced:
            raise LimitNotEnforced(
                f"this host does not enforce {', '.join(unenforced)}; set allow_unenforced to run without,"
                " or see `rockroll doctor` for the cure"
            )

    async def _undo(self, creating: asyncio.Future[str]) -> None:
        """A create that Podman has begun is seen to its end, however often its caller is cancelled: nobody else would
        ever know of that container."""
        try:
            container = await creating
        except RockrollError:
            return
        await self._podman.remove(container)

    def _watch_ttl(self, box: Box) -> None:
        if box.config.ttl_s is not None:
            left = max(0.0, box.created + box.config.ttl_s - time.time())
            loop = asyncio.get_running_loop()
            self._ttl[box.id] = loop.call_later(left, lambda: self._spawn(self._remove(box, "ttl")))
        if box.config.idle_ttl_s is not None:
            self._look_idle(box, box.config.idle_ttl_s)

    def _look_idle(self, box: Box, limit: float) -> None:
        """Now, and again when it could have been idle for long enough at the earliest."""
        left = limit if box.calls.under_way else box.calls.last + limit - time.monotonic()
        if left > 0:
            self._idle[box.id] = asyncio.get_running_loop().call_later(left, self._look_idle, box, limit)
        else:
            self._spawn(self._remove(box, "ttl"))

    async def _remove(self, box: Box, cause: wire.Cause = "deleted") -> None:
        """Once for each box, to its end: a second caller waits for the first, a cancelled one leaves it running."""
        if box.id not in self._removing:
            task = asyncio.get_running_loop().create_task(self._remove_once(box, cause))
            self._removing[box.id] = task
            task.add_done_callback(lambda _: self._removing.pop(box.id, None))
        await asyncio.shield(self._removing[box.id])

    async def _remove_once(self, box: Box, cause: wire.Cause) -> None:
        try:
            await box.life.remove(cause)
        except RockrollError:
            if cause in ("ttl", "owner_gone"):  # nobody else will ask again
                loop = asyncio.get_running_loop()
                self._ttl[box.id] = loop.call_later(REMOVE_AGAIN_S, lambda: self._spawn(self._remove(box, cause)))
            raise
        for timers in (self._ttl, self._idle):
            if timer := timers.pop(box.id, None):
                timer.cancel()
        if owner := self._owners.pop(box.id, None):
            owner.forget()
        self._boxes.pop(box.id, None)
        self._registry.drop(box.id, cause, time.time())
        for owned in self._owned.values():
            owned.discard(box.id)
        self._on_removed(box.id)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a sandbox could not be removed: %s", error)

    async def _list(self, body: wire.List, _peer: rpc.Peer) -> list[wire.SandboxInfo]:
        found = [box.info() for box in self._boxes.values()]
        if body.all or body.state == "gone":
            found += [_story(row) for row in self._registry.gone()]
        return [
            info for info in found if body.labels.items() <= info.labels.items() and body.state in (None, info.state)
        ]

    async def _claim(self, body: wire.Ref, peer: rpc.Peer) -> wire.SandboxInfo:
        """The owner's process is back after its node has died: from now on its connection holds the box again."""
        box = self._box(body.id)
        if owner := self._owners.get(box.id):
            if owner.pid != peer.pid:
                raise UsageError(f"sandbox {box.id} belongs to process {owner.pid}; only that process can claim it")
            self._owned.setdefault(peer.id, set()).add(box.id)
            del self._owners[box.id]
            owner.forget()
        return box.info()

    async def _restore(self, body: wire.Restore, _peer: rpc.Peer) -> wire.Restored:
        box = self._box(body.id)
        cause, sessions, lost = await box.life.restore(restart=body.restart)
        return wire.Restored(info=box.info(), cause=cause, sessions=sessions, lost=lost)

    async def _get(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        return self._box(body.id).info()

    async def _stop(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await box.life.stop()
        return box.info()

    async def _start(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await box.life.start()
        return box.info()

    async def _delete(self, body: wire.Ref, _peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        await asyncio.shield(self._remove(box))
        return box.info()

    async def _stats(self, body: wire.Ref, _peer: rpc.Peer) -> wire.Stats:
        return await asyncio.to_thread(self._box(body.id).stats)

    async def _recycle(self, body: wire.Ref, _peer: rpc.Peer) -> wire.Recycled:
        box = self._box(body.id)
        try:
            reason = await box.recycle(lambda: self._files.quiet(box.id))
        except BaseException:
            self._spawn(self._remove(box))
            raise
        if reason is None:
            return wire.Recycled(ok=True)
        await self._remove(box)
        return wire.Recycled(ok=False, reason=reason)

    # -- copies of files

    async def _snapshot(self, body: wire.Snapshot, _peer: rpc.Peer) -> wire.SnapshotInfo:
        box = self._box(body.id)
        info = wire.SnapshotInfo(
            name=body.name,
            image=box.config.image_name,
            image_id=await box.image_id(),
            created=time.time(),
            sandbox=box.id,
            config=dataclasses.asdict(box.config),
            first_id=first_id(box.config),
        )
        return await self._snapshots.take(info, box.copy_files)

    async def _fork(self, body: wire.Fork, peer: rpc.Peer) -> wire.SandboxInfo:
        box = self._box(body.id)
        config = _config({**dataclasses.asdict(box.config), "name": body.name, "snapshot": None})
        return await self._make(config, body.owner or box.owner, peer, await box.image_id(), box.copy_files)

    async def _list_snapshots(self, _body: wire.Empty, _peer: rpc.Peer) -> list[wire.SnapshotInfo]:
        return self._snapshots.all()

    async def _delete_snapshot(self, body: wire.SnapshotRef, _peer: rpc.Peer) -> wire.SnapshotInfo:
        return await self._snapshots.delete(body.name)

    # -- what runs in it, its environment, a terminal

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

    # -- commands, files, logs

    async def _create_session(self, body: wire.SessionSpec, _peer: rpc.Peer) -> wire.SessionInfo:
        return (await self._box(body.id).sessions.create(body.session, body.env, body.cwd)).info()

    async def _close_session(self, body: wire.SessionSpec, _peer: rpc.Peer) -> None:
        await self._box(body.id).sessions.close(body.session)

    async def _list_sessions(self, body: wire.Ref, _peer: rpc.Peer) -> list[wire.SessionInfo]:
        return self._box(body.id).sessions.infos()

    async def _run(self, body: wire.Run, _peer: rpc.Peer) -> wire.Observation:
        return await self._box(body.id).run(body)

    async def _execute(self, body: wire.Execute, _peer: rpc.Peer) -> wire.Observation:
        return await self._box(body.id).execute(body)

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

    async def _info(self, _body: wire.Empty, _peer: rpc.Peer) -> wire.NodeInfo:
        return wire.NodeInfo(
            node=os.uname().nodename,
            pid=os.getpid(),
            version=_VERSION,
            sandboxes=self.count(),
            rootless=self._rootless,
        )


def _story(row: Row) -> wire.SandboxInfo:
    """A sandbox that is gone."""
    config = _config(row.config)
    return wire.SandboxInfo(
        id=row.id,
        name=row.name,
        state="gone",
        image=config.image_name,
        node=os.uname().nodename,
        created=row.created,
        owner=row.owner,
        labels=dict(config.labels),
        cause=row.cause,
        ended=row.ended,
    )


def _config(fields: Mapping[str, Any]) -> SandboxConfig:
    """UsageError for a field that there is not, or a value that cannot be."""
    known = {field.name for field in dataclasses.fields(SandboxConfig)}
    if unknown := sorted(set(fields) - known):
        raise UsageError(f"a sandbox has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    try:
        return SandboxConfig(**{**fields, "mounts": tuple(fields.get("mounts", ()))})
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def _raise_file_limit() -> None:
    """A session holds about nine descriptors; the usual soft limit of 1,024 ends at a hundred of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
