"""Changes in folders of boxes, by inotify from the host.

In: a box's init and a path in it. Out: batches of FileEvents. All watches of a node share one inotify instance, since a
user has 128 of them, and one thread, since looking into folders blocks. Leaves who asked, and the box's end, to
file_methods.py.

Folders are watched, not files: a file that is replaced keeps being watched. Each folder is opened without following a
link and named to inotify by its descriptor, so that a box cannot have anything of the host's watched. A folder made
later is watched from then on; what was put in it before that is told as created.

    begin ──► watching ──┬─ the top is deleted or moved: `deleted`, end
                         └─ changes faster than they are taken: `overflow` in their place
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import select
import struct
import termios
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from pathlib import PurePosixPath
from typing import Literal

from rockroll.errors import FileError, HostError, SandboxLost
from rockroll.sandbox.fs.files import look, open_in, root_of
from rockroll.sandbox.fs.tree import shown
from rockroll.sandbox.linux.beneath import FOLDER, kernel_type, open_folder, opened
from rockroll.sandbox.linux.steps import step
from rockroll.sandbox.wire import FileEvent

MOST_WAITING = 4096
"""Events of one watch that were not taken yet."""
MOST_FOLDERS = 8192
"""Folders of one watch: a user's watches are limited, and a box could use all of them up."""
AT_ONCE = 256
PAIR_MS = 20
"""The two halves of a move come together; the second is waited for this long where a read ended between them."""

Kind = Literal["created", "modified", "deleted", "moved", "overflow"]
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED, _IS_FOLDER = 0x400, 0x800, 0x2000, 0x4000, 0x8000, 0x40000000
_ONLY_FOLDERS = 0x01000000
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLY_FOLDERS
_EVENT = struct.Struct("iIII")
_GONE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE)
_libc = ctypes.CDLL(None, use_errno=True)


class _Folder:
    """One watched folder of one watch."""

    def __init__(self, watch: _Watch, wd: int, parent: _Folder | None, name: bytes) -> None:
        self.watch, self.wd, self.parent, self.name = watch, wd, parent, name
        self.folders: dict[bytes, _Folder] = {}
        self.told: set[bytes] = set()
        """Told as created by a look into the folder; inotify may be about to tell of them once more."""

    def names(self) -> list[bytes]:
        """From the top on."""
        names: list[bytes] = []
        folder = self
        while folder.parent is not None:
            names.append(folder.name)
            folder = folder.parent
        return names[::-1]

    def path(self, name: bytes) -> str:
        """As the box sees it."""
        return f"{self.watch.path.rstrip('/')}/{shown(b'/'.join([*self.names(), name]))}"


class _Watch:
    """One caller's watch: its folders, and the events that were not taken. `tell` may come from any thread."""

    def __init__(self, pid: int, path: str, only: bytes | None, recursive: bool) -> None:
        self.pid, self.path, self.only, self.recursive = pid, path, only, recursive
        self.top: _Folder | None = None
        self.folders = 0
        self.moved: tuple[_Folder, bytes, int] | None = None
        """The first half of a move: folder, name, cookie."""
        self._waiting: deque[FileEvent] = deque()
        self._over = False
        self._lock = threading.Lock()
        self._loop, self._some = asyncio.get_running_loop(), asyncio.Event()

    def wants(self, *names: bytes) -> bool:
        return self.only is None or self.only in names

    def tell(self, kind: Kind, path: str, moved_from: str | None = None) -> None:
        event = FileEvent(kind=kind, path=path, moved_from=moved_from)
        with self._lock:
            last = self._waiting[-1] if self._waiting else None
            if self._over or (last and (last.kind == "overflow" or (kind == "modified" and last == event))):
                return  # one word for many writes; after an overflow nothing more until it was taken
            if len(self._waiting) >= MOST_WAITING:
                event = FileEvent(kind="overflow", path=self.path)
            self._waiting.append(event)
        self._wake()

    def end(self) -> None:
        """What was told can still be taken."""
        with self._lock:
            self._over = True
        self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._some.set)
        except RuntimeError:
            pass  # the loop is closed: nobody takes any more

    async def take(self) -> list[FileEvent]:
        """[] at the end."""
        while True:
            await self._some.wait()
            with self._lock:
                batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                over = self._over
                if not self._waiting and not over:
                    self._some.clear()
            if batch or over:
                return batch
            # Woken for an event that the batch before had with it: nothing has ended.


class Watcher:
    """All watches of this process. The thread and the inotify instance live as long as there is a watch."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        """Held by whoever looks at or changes anything here, for the time of one batch or one walk."""
        self._fd = self._stop = -1
        self._by_wd: dict[int, list[_Folder]] = {}
        self._watches: set[_Watch] = set()
        self._told: list[_Folder] = []

    async def watch(self, pid: int, path: str, recursive: bool) -> AsyncGenerator[list[FileEvent], None]:
        """Batches of changes. The first is empty: from there on nothing is missed. Raises FileError, HostError.

        path: a folder, or a file, whose folder is then watched for it.
        """
        found = await step(look, pid, path, True)
        if found is None:
            raise FileError(f"{path}: no such file or folder in the sandbox")
        pure = PurePosixPath(path)
        if found.kind == "dir":
            watch = _Watch(pid, path, None, recursive)
        else:
            watch = _Watch(pid, str(pure.parent), os.fsencode(pure.name), False)
        try:
            await step(self._begin, watch)
            yield []
            while batch := await watch.take():
                yield batch
        finally:
            await step(self._end, watch)

    def close(self) -> None:
        """Ends every watch."""
        with self._lock:
            for watch in list(self._watches):
                self._end(watch)

    def _begin(self, watch: _Watch) -> None:
        with self._lock:
            if self._fd < 0:
                self._open()
            self._watches.add(watch)
            try:
                with opened(_open_below(watch, [])) as fd:
                    if kind := kernel_type(fd):
                        raise FileError(
                            f"{watch.path} is in a file system of the kernel ({kind}), which tells of nothing"
                        )
                    watch.top = self._add(watch, None, b"", fd)
            except OSError as error:
                raise FileError(f"{watch.path} cannot be watched: {os.strerror(error.errno or 0)}") from error
            if watch.recursive and watch.top:
                self._add_below(watch.top, news=False)

    def _open(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise HostError(
                f"this host gives no inotify instance ({os.strerror(ctypes.get_errno())}): end programs that watch"
                " files, or raise fs.inotify.max_user_instances"
            )
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        thread = threading.Thread(target=self._serve, args=(self._fd, self._stop), name="rockroll-watch", daemon=True)
        thread.start()

    def _end(self, watch: _Watch) -> None:
        with self._lock:
            watch.end()
            if watch.top:
                self._forget(watch.top)
                watch.top = None
            self._watches.discard(watch)
            if not self._watches and self._fd >= 0:
                os.eventfd_write(self._stop, 1)  # the thread closes both
                self._fd = self._stop = -1
                self._by_wd.clear()

    # -- folders

    def _add(self, watch: _Watch, parent: _Folder | None, name: bytes, fd: int) -> _Folder:
        """Watches the folder that fd is of. OSError, FileError."""
        if watch.folders >= MOST_FOLDERS:
            raise FileError(f"{watch.path} holds more than {MOST_FOLDERS} folders: watch a part of it")
        wd = _libc.inotify_add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _MASK)
        if wd < 0:
            if (code := ctypes.get_errno()) == errno.ENOSPC:
                raise FileError(
                    f"{watch.path} holds more folders than this user may watch: watch a part of it, or raise"
                    " fs.inotify.max_user_watches"
                )
            raise OSError(code, os.strerror(code))
        folder = _Folder(watch, wd, parent, name)
        self._by_wd.setdefault(wd, []).append(folder)
        watch.folders += 1
        if parent is not None:
            parent.folders[name] = folder
        return folder

    def _add_below(self, top: _Folder, *, news: bool) -> None:
        """Watches the folders in a watched one, at any depth; news: tells what is found there as created."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            watch = folder.watch
            try:
                with opened(_open_below(watch, folder.names())) as fd:
                    for name, is_folder in list(_entries(fd)):
                        if news:
                            folder.told.add(name)
                            watch.tell("created", folder.path(name))
                        if is_folder and name not in folder.folders:
                            waiting += self._add_one(folder, name)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
            if folder.told:
                self._told.append(folder)

    def _add_one(self, folder: _Folder, name: bytes) -> Iterator[_Folder]:
        try:
            with opened(_open_below(folder.watch, [*folder.names(), name])) as fd:
                if not kernel_type(fd):
                    yield self._add(folder.watch, folder, name, fd)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _add_new(self, folder: _Folder, name: bytes) -> None:
        """A folder has come into a watched one."""
        if not folder.watch.recursive or name in folder.folders:
            return
        try:
            for made in self._add_one(folder, name):
                self._add_below(made, news=True)
        except (FileError, OSError, SandboxLost):  # a box that is dying ends no watch but its own
            folder.watch.tell("overflow", folder.watch.path)

    def _forget(self, folder: _Folder) -> None:
        """No longer watches a folder and those in it."""
        if folder.parent is not None and folder.parent.folders.get(folder.name) is folder:
            del folder.parent.folders[folder.name]
        waiting = [folder]
        while waiting:
            gone = waiting.pop()
            waiting += gone.folders.values()
            gone.watch.folders -= 1
            same = self._by_wd.get(gone.wd, [])
            if gone in same:
                same.remove(gone)
                if not same:
                    del self._by_wd[gone.wd]
                    _libc.inotify_rm_watch(self._fd, gone.wd)

    # -- events

    def _serve(self, fd: int, stop: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(stop, select.POLLIN)
        pending = False
        try:
            while True:
                ready = dict(poll.poll(PAIR_MS if pending else None))
                with self._lock:
                    if stop in ready:
                        return
                    data = os.read(fd, 1 << 16) if fd in ready else b""
                    self._batch(data)
                    if not data or not _readable(fd):
                        self._forget_told()
                    pending = any(watch.moved for watch in self._watches)
                    if pending and not data:
                        for watch in self._watches:
                            self._moved_away(watch)
                        pending = False
        finally:
            with self._lock:
                if (
                    self._fd == fd
                ):  # nobody has asked for this end: whoever watches is told, and a later watch begins anew
                    self._fd = self._stop = -1
                    for watch in self._watches:
                        watch.top = None
                        watch.end()
                    self._watches.clear()
                    self._by_wd.clear()
                os.close(fd)
                os.close(stop)

    def _batch(self, data: bytes) -> None:
        offset = 0
        while offset < len(data):
            wd, mask, cookie, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            if mask & _OVERFLOW:
                self._again()
            elif mask & _IGNORED:
                for folder in self._by_wd.pop(wd, []):
                    folder.watch.folders -= 1
            else:
                for folder in list(self._by_wd.get(wd, [])):
                    self._event(folder, mask, cookie, name)

    def _event(self, folder: _Folder, mask: int, cookie: int, name: bytes) -> None:
        watch = folder.watch
        if watch.moved and not (mask & _MOVED_TO and watch.moved[2] == cookie):
            self._moved_away(watch)
        if mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT):
            if folder is watch.top:
                watch.tell("deleted", watch.path)
                watch.end()
        elif not name:
            return  # the folder's own mode or times
        elif mask & _MOVED_FROM:
            watch.moved = folder, name, cookie
        elif mask & _MOVED_TO and watch.moved:
            self._moved_within(folder, name)
        elif mask & (_CREATE | _MOVED_TO):
            if name not in folder.told and watch.wants(name):
                watch.tell("created", folder.path(name))
            folder.told.discard(name)
            if mask & _IS_FOLDER:
                self._add_new(folder, name)
        elif mask & _DELETE:
            folder.told.discard(name)
            if watch.wants(name):
                watch.tell("deleted", folder.path(name))
            if below := folder.folders.get(name):
                self._forget(below)
        elif mask & (_MODIFY | _ATTRIB) and watch.wants(name):
            watch.tell("modified", folder.path(name))

    def _moved_within(self, folder: _Folder, name: bytes) -> None:
        watch = folder.watch
        assert watch.moved is not None
        (before, old, _), watch.moved = watch.moved, None
        if watch.wants(old, name):
            watch.tell("moved", folder.path(name), before.path(old))
        if replaced := folder.folders.get(name):
            self._forget(replaced)
        if moved := before.folders.pop(old, None):
            moved.parent, moved.name = folder, name
            folder.folders[name] = moved

    def _moved_away(self, watch: _Watch) -> None:
        """The second half of a move did not come: it led out of what is watched."""
        if watch.moved is None:
            return
        (folder, name, _), watch.moved = watch.moved, None
        if watch.wants(name):
            watch.tell("deleted", folder.path(name))
        if below := folder.folders.get(name):
            self._forget(below)

    def _again(self) -> None:
        """The kernel dropped events: what folders there are is found out anew."""
        for watch in self._watches:
            watch.moved = None
            watch.tell("overflow", watch.path)
            if watch.top:
                for folder in list(watch.top.folders.values()):
                    self._forget(folder)
                if watch.recursive:
                    try:
                        self._add_below(watch.top, news=False)
                    except (FileError, OSError, SandboxLost):
                        continue  # it has been told that it is to look by itself

    def _forget_told(self) -> None:
        """Whatever inotify had to tell of a time before now has been read."""
        for folder in self._told:
            folder.told.clear()
        self._told.clear()


def _open_below(watch: _Watch, names: list[bytes]) -> int:
    with root_of(watch.pid) as root, opened(open_in(root, watch.path, FOLDER & ~os.O_NOFOLLOW)) as top:
        return open_folder(top, names)


def _entries(folder: int) -> Iterator[tuple[bytes, bool]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)


def _readable(fd: int) -> bool:
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return any(buffer)
