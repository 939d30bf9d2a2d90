"""The node's file methods: every `file.*` of wire/.

In: rpc calls, and the boxes that they name. Out: replies and streams. Leaves the files to files.py, trees to
tree_read.py and tree_write.py, changes to watch.py; this file brings them onto the event loop.

A copy ends when its box does: the descriptors that it holds would keep the box's file systems mounted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any

from rockroll import rpc
from rockroll.errors import SandboxError, SandboxLost
from rockroll.sandbox import wire
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.fs import files
from rockroll.sandbox.fs.tree import Copied, Part
from rockroll.sandbox.fs.tree_read import read_tree
from rockroll.sandbox.fs.tree_write import TreeWriter
from rockroll.sandbox.fs.watch import Watcher
from rockroll.sandbox.linux.steps import P, T, step, steps, to_its_end


class FileMethods:
    """box: the box of an id, a prefix of one or a name; raises SandboxNotFound."""

    def __init__(self, box: Callable[[str], Box]) -> None:
        self._box = box
        self._running: dict[str, set[_Running]] = {}
        self._watcher = Watcher()

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            "file.write": self._write,
            "file.read": self._read,
            "file.list": self._list,
            "file.walk": self._walk,
            "file.stat": self._stat,
            "file.mkdir": self._mkdir,
            "file.remove": self._remove,
            "file.move": self._move,
            "file.get": self._get,
            "file.put": self._put,
            "file.watch": self._watch,
        }

    async def quiet(self, box_id: str) -> None:
        """Ends every call on the files of a box that is about to be made new, and waits for its last step. None may
        begin meanwhile."""
        running = list(self._running.get(box_id, ()))
        for each in running:
            each.end(SandboxError(f"sandbox {box_id} was made new while its files were in use"))
        for each in running:
            await each.over.wait()

    def close(self) -> None:
        self._watcher.close()

    async def _write(self, body: wire.WriteFile, _peer: rpc.Peer) -> None:
        box, path = self._box(body.id), os.fsdecode(body.path)
        async with self._during(box):
            await self._change(box, files.write, box.init, path, body.data, body.mode, body.append, box.hull.owner_ids)

    async def _read(self, body: wire.ReadFile, _peer: rpc.Peer) -> wire.FileChunk:
        box = self._box(body.id)
        async with self._during(box):
            return await step(files.read, box.init, os.fsdecode(body.path), body.offset, body.limit)

    async def _list(self, body: wire.ListFiles, _peer: rpc.Peer) -> list[wire.FileStat]:
        box = self._box(body.id)
        async with self._during(box):
            return await step(files.list_folder, box.init, os.fsdecode(body.path))

    async def _stat(self, body: wire.StatFile, _peer: rpc.Peer) -> wire.FileStat | None:
        box = self._box(body.id)
        async with self._during(box):
            return await step(files.look, box.init, os.fsdecode(body.path), body.follow)

    async def _mkdir(self, body: wire.MakeFolder, _peer: rpc.Peer) -> None:
        box = self._box(body.id)
        async with self._during(box):
            await self._change(box, files.make_folder, box.init, os.fsdecode(body.path), body.mode, box.hull.owner_ids)

    async def _remove(self, body: wire.RemoveFile, _peer: rpc.Peer) -> None:
        box = self._box(body.id)
        async with self._during(box):
            await self._change(box, files.remove, box.init, os.fsdecode(body.path), body.recursive)

    async def _move(self, body: wire.MoveFile, _peer: rpc.Peer) -> None:
        box = self._box(body.id)
        async with self._during(box):
            source, target = os.fsdecode(body.source), os.fsdecode(body.target)
            await self._change(box, files.move, box.init, source, target, box.hull.owner_ids)

    async def _change(self, box: Box, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """One step that writes into a box."""
        async with box.hull.writable.writers.shared():
            return await step(work, *args, **kwargs)

    async def _walk(self, body: wire.PathOf, _peer: rpc.Peer) -> AsyncIterator[list[wire.FileStat]]:
        box = self._box(body.id)
        async with self._during(box), aclosing(steps(files.walk(box.init, os.fsdecode(body.path)))) as lists:
            async for found in lists:
                yield found

    async def _get(self, body: wire.PathOf, _peer: rpc.Peer) -> AsyncIterator[Part]:
        box = self._box(body.id)

        def parts() -> Generator[Part, None, None]:
            with files.tree_source(box.init, os.fsdecode(body.path)) as top:
                yield from read_tree(top)

        async with self._during(box), aclosing(steps(parts())) as read:
            async for part in read:
                yield part

    async def _put(self, body: wire.PathOf, _peer: rpc.Peer, parts: rpc.Parts) -> Copied:
        box = self._box(body.id)
        async with self._during(box):
            writing = ExitStack()
            try:
                target = files.tree_target(box.init, os.fsdecode(body.path), box.hull.owner_ids)
                writer = TreeWriter(await self._change(box, writing.enter_context, target))
                writing.callback(writer.close)
                async for part in parts.of(Part):
                    await self._change(box, writer.write, part)
                return writer.done()
            finally:
                await to_its_end(asyncio.ensure_future(self._change(box, writing.close)))

    async def _watch(self, body: wire.WatchFiles, _peer: rpc.Peer) -> AsyncIterator[list[wire.FileEvent]]:
        box = self._box(body.id)
        watching = self._watcher.watch(box.init, os.fsdecode(body.path), body.recursive)
        async with self._during(box, ends_well=True), aclosing(watching) as batches:
            async for events in batches:
                yield events

    @asynccontextmanager
    async def _during(self, box: Box, *, ends_well: bool = False) -> AsyncIterator[None]:
        """Ends this task's work when the box ends or is made new: with the error that says so, or without one. Raises
        SandboxError where it is being made new."""
        box.status.need_rest()
        task = asyncio.current_task()
        assert task is not None
        this = _Running(task)

        def end(_: object) -> None:
            this.end(SandboxLost(f"sandbox {box.id} ended while its files were copied"))

        ended = box.init_end
        ended.add_done_callback(end)
        running = self._running.setdefault(box.id, set())
        running.add(this)
        try:
            yield
        except asyncio.CancelledError:
            if this.why is None or task.uncancel() > 0:
                raise
            if not ends_well:
                raise this.why from None
        finally:
            ended.remove_done_callback(end)
            running.discard(this)
            this.over.set()
            if not running:
                self._running.pop(box.id, None)


class _Running:
    """A call under way."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.why: SandboxError | None = None
        self.over = asyncio.Event()

    def end(self, why: SandboxError) -> None:
        if self.why is None:
            self.why = why
            self.task.cancel()
