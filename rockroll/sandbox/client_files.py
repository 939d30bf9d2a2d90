"""The files of a sandbox: the part of `Sandbox` that reads, writes and copies them.

In: paths in the box (str, or bytes where they are not UTF-8), paths on this side. Out: bytes, FileStats, Copied, or
FileError. Leaves connecting to client_link.py, and everything inside the box to the node.

Client and node share no file system here: a tree travels as parts (tree.py), read and written on either side by the
same code.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from rockroll.errors import FileError, PeerLost, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.fs.tree import Copied, Extent, File, Links, Part, shown
from rockroll.sandbox.fs.tree_read import read_tree
from rockroll.sandbox.fs.tree_write import Target, TreeWriter
from rockroll.sandbox.linux.beneath import opened
from rockroll.sandbox.linux.steps import step, steps

if TYPE_CHECKING:
    from rockroll.sandbox.node_client import Node

T = TypeVar("T")
PART = 16 << 20
"""Bytes of a file carried by one message of write_file and read_file."""
BoxPath = str | bytes
Progress = Callable[[int, int], None]
"""Told of a copy as it goes: files so far, bytes so far."""


class Connection(Protocol):
    """What this part needs of `Sandbox`."""

    @property
    def id(self) -> str: ...
    async def _connected(self) -> Node: ...
    async def _call(
        self, method: str, body: wire.Struct, type: type[T] = object, *, parts: AsyncIterator[Any] | None = None
    ) -> T: ...


class Watch:
    """Changes as they come; see Files.watch. Belongs to one task."""

    def __init__(self, batches: AsyncGenerator[list[wire.FileEvent], None]) -> None:
        self._batches = batches
        self._events: deque[wire.FileEvent] = deque()
        self._begun = False

    async def __aenter__(self) -> Self:
        if not self._begun:
            self._begun = True
            self._events.extend(await anext(self._batches))  # the node sends the first, empty one once it watches
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> wire.FileEvent:
        self._begun = True
        while not self._events:
            self._events.extend(await anext(self._batches))
        return self._events.popleft()

    async def aclose(self) -> None:
        """Ends the watching."""
        await self._batches.aclose()


class Files(Connection):
    """Every method raises FileError for what the path or the file system says, and what `Sandbox` says for the box."""

    async def write_file(self, path: BoxPath, data: bytes | str, *, mode: int = 0o644, append: bool = False) -> None:
        """Writes bytes (or text, as UTF-8) to a file in the box; missing parent folders are made. FileError."""
        raw = data.encode() if isinstance(data, str) else data
        for start in range(0, len(raw) or 1, PART):
            part = raw[start : start + PART]
            more = append or start > 0
            await self._call(
                "file.write", wire.WriteFile(id=self.id, path=_wire(path), data=part, mode=mode, append=more)
            )

    async def read_file(self, path: BoxPath, *, offset: int = 0, limit: int | None = None) -> bytes:
        """The bytes of a file in the box, at most `limit` of them from `offset` on. FileError: missing, or a folder."""
        parts: list[bytes] = []
        left = limit
        while True:
            size = PART if left is None else min(left, PART)
            body = wire.ReadFile(id=self.id, path=_wire(path), offset=offset, limit=size)
            chunk = await self._call("file.read", body, wire.FileChunk)
            parts.append(chunk.data)
            offset += len(chunk.data)
            left = None if left is None else left - len(chunk.data)
            if not chunk.data or offset >= chunk.size or left == 0:
                return b"".join(parts)

    async def list_files(self, path: BoxPath, *, recursive: bool = False) -> list[wire.FileStat]:
        """What is in a folder of the box, by name; links are told, not followed. FileError: missing, or no folder.

        recursive: of all folders below it too; a name is then a path from `path` on.
        """
        if not recursive:
            return await self._call("file.list", wire.ListFiles(id=self.id, path=_wire(path)), list[wire.FileStat])
        found: list[wire.FileStat] = []
        async for some in self._stream("file.walk", wire.PathOf(id=self.id, path=_wire(path)), list[wire.FileStat]):
            found += some
        return sorted(found, key=lambda entry: entry.name)

    async def stat(self, path: BoxPath, *, follow: bool = True) -> wire.FileStat:
        """Kind, size, mode and time of what is at a path. FileError where nothing is.

        follow: of what a link at its end points to; otherwise of the link, with its `target`.
        """
        found = await self._stat(path, follow)
        if found is None:
            raise FileError(f"{_shown(path)}: no such file or folder in the sandbox")
        return found

    async def exists(self, path: BoxPath) -> bool:
        """Whether there is something at a path; a link that leads nowhere is nothing."""
        return await self._stat(path, True) is not None

    async def _stat(self, path: BoxPath, follow: bool) -> wire.FileStat | None:
        return await self._call("file.stat", wire.StatFile(id=self.id, path=_wire(path), follow=follow), _MaybeStat)

    async def mkdir(self, path: BoxPath, *, mode: int = 0o755) -> None:
        """Makes a folder and those missing above it. One that is there already stays as it is."""
        await self._call("file.mkdir", wire.MakeFolder(id=self.id, path=_wire(path), mode=mode))

    async def remove(self, path: BoxPath, *, recursive: bool = False) -> None:
        """Removes a file, a link (not what it points to) or an empty folder; recursive: a folder and all in it."""
        await self._call("file.remove", wire.RemoveFile(id=self.id, path=_wire(path), recursive=recursive))

    async def move(self, source: BoxPath, target: BoxPath) -> None:
        """Renames within the box. `target` is the new path; a file there is replaced, folders above it are made."""
        await self._call("file.move", wire.MoveFile(id=self.id, source=_wire(source), target=_wire(target)))

    async def upload(
        self, local: str | os.PathLike[str], remote: BoxPath, *, progress: Progress | None = None
    ) -> Copied:
        """Copies a file to the path `remote`, or what is in a folder into the folder `remote`, which is made.

        Kept: names, modes, times, empty folders, symbolic links (as they are, never followed), hard links within the
        tree, holes. Everything belongs to the box's user. A file under a name of the tree is replaced; a file of more
        than 128 KiB appears under its name once it is whole. Left out, and told in the result: sockets, FIFOs,
        devices. FileError: `local` is missing or may not be read, the box is full.
        """
        source = _local(local)

        def parts() -> Generator[Part, None, None]:
            try:
                fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                raise FileError(f"{source}: no file or folder of that name on this side ({error.strerror})") from None
            with opened(fd):
                try:
                    yield from read_tree(fd)
                except FileError as error:
                    raise FileError(f"{source}: {error}") from error

        body = wire.PathOf(id=self.id, path=_wire(remote))
        async with contextlib.aclosing(_told(steps(parts()), progress)) as sent:
            return await self._call("file.put", body, Copied, parts=sent)

    async def download(
        self,
        remote: BoxPath,
        local: str | os.PathLike[str],
        *,
        links: Links = "inside",
        progress: Progress | None = None,
    ) -> Copied:
        """Copies a file to the path `local`, or what is in a folder into the folder `local`, which is made.

        As `upload`, the other way; everything belongs to this process's user. links: "inside" leaves out symbolic links
        that lead out of the tree, since programs on this side would follow them to files of this side; "all" makes
        them too. The result's `left_out` says what was left out, and why.
        """
        target = _local(local)
        writing = contextlib.ExitStack()
        try:
            writer = TreeWriter(await step(writing.enter_context, _local_target(target)), links=links)
            writing.callback(writer.close)
            body = wire.PathOf(id=self.id, path=_wire(remote))
            async with contextlib.aclosing(self._stream("file.get", body, Part)) as parts:
                async for part in parts:
                    await step(writer.write, part)
                    if progress:
                        progress(writer.files_written, writer.bytes_written)
            return writer.done()
        finally:
            await step(writing.close)

    def watch(self, path: BoxPath, *, recursive: bool = False) -> Watch:
        """Changes in a folder of the box (or of one file), as they happen.

            async for event in sandbox.watch("/srv", recursive=True):
                print(event.kind, event.path)  # created, modified, deleted, moved (with moved_from), overflow

        Ends with the box, when the folder is deleted, and when the loop is left. "overflow" says that changes came
        faster than they were taken and some were lost. The loop begins to watch when it first waits; with `async with
        sandbox.watch(path) as changes:` nothing that happens in the block is missed.
        """
        body = wire.WatchFiles(id=self.id, path=_wire(path), recursive=recursive)
        return Watch(self._stream("file.watch", body, list[wire.FileEvent]))

    async def _stream(self, method: str, body: wire.Struct, type: Any) -> AsyncGenerator[Any, None]:
        node = await self._connected()
        try:
            async with contextlib.aclosing(node.stream(method, body, type=type)) as items:
                async for item in items:
                    yield item
        except PeerLost as error:
            raise SandboxLost(f"the node died while {method} was under way: {error}", cause="node_lost") from error


_MaybeStat: Any = wire.FileStat | None


async def _told(parts: AsyncGenerator[Part, None], progress: Progress | None) -> AsyncGenerator[Part, None]:
    """The same parts; progress is told what is in them once they are sent."""
    files = sent = 0
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield part
            if progress is None:
                continue
            for item in part:
                if isinstance(item, File):
                    files += 1
                    sent += len(item.data or b"")
                elif isinstance(item, Extent):
                    sent += len(item.data)
            progress(files, sent)


@contextlib.contextmanager
def _local_target(target: Path) -> Iterator[Target]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        parent = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise FileError(f"{target}: its folder cannot be made on this side ({error.strerror})") from None
    with opened(parent):
        yield Target(
            parent=parent,
            name=os.fsencode(target.name),
            folder=lambda: os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            path=shown(os.fsencode(target)),
            side="on this side",
        )


def _local(path: str | os.PathLike[str]) -> Path:
    """`..` and `.` at the end are resolved, so that the last name is one."""
    found = Path(path)
    return found if found.name not in ("", "..") else found.resolve()


def _wire(path: BoxPath) -> bytes:
    if not isinstance(path, str | bytes | os.PathLike):
        raise UsageError(f"a path in the sandbox is a str, or bytes where it is not UTF-8; got {path!r}")
    return os.fsencode(path)


def _shown(path: BoxPath) -> str:
    return shown(_wire(path))
