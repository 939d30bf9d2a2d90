"""Parts of a tree (tree.py), written into a folder and never outside it.

In: a Target and parts, which may come from a hostile side. Out: files, and what was done (Copied). Every name is looked
at, every folder is opened from its parent's descriptor without following a link, and what exists under a file's name is
replaced, not written into: neither a link nor a hard link carries data elsewhere. Leaves it to its caller where the
target is and who may name it. All of it blocks: call it from a thread.

    TreeWriter(target) ── write(part)* ──► done()        or ── close(): a file that is not whole is removed
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass

from rockroll.errors import FileError
from rockroll.sandbox.fs.tree import (
    MODE_BITS,
    MOST_HARD_LINKED,
    MOST_NAMED,
    Copied,
    Enter,
    Extent,
    File,
    Leave,
    LeftOut,
    Link,
    Links,
    Part,
    Same,
    Skipped,
    Whole,
    shown,
)
from rockroll.sandbox.linux.beneath import FOLDER, Descent, beneath, kernel_type, opened

TEMPORARY = b".rockroll-"
"""A file that is on its way has this and eight hex digits as its name, until it is whole."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a tree goes."""

    parent: int
    """A descriptor of the folder that the tree's top is made in. Not closed here."""
    name: bytes
    """The top's name in it."""
    folder: Callable[[], int]
    """Opens the folder that is at the target already, by whatever links the caller trusts. FileNotFoundError."""
    path: str
    """For errors."""
    side: str
    """For errors: "in the sandbox", "on this side"."""
    owner: tuple[int, int] | None = None
    """uid and gid of everything that is made; None: this process's."""


@dataclass(frozen=True)
class _Coming:
    """A file whose data is on its way."""

    fd: int
    folder: int
    temporary: bytes
    name: bytes
    item: File


class TreeWriter:
    """See the module's drawing. links: "inside" leaves out symbolic links that lead out of the tree."""

    def __init__(self, target: Target, *, links: Links = "all") -> None:
        self._target, self._links = target, links
        self._descent: Descent | None = None
        self._made: list[bool] = []
        self._coming: _Coming | None = None
        self._complete = False
        self._numbers: dict[int, tuple[tuple[bytes, ...], bytes]] = {}
        self._files = self._folders = self._link_count = self._bytes = self._left_out_count = 0
        self._left_out: list[LeftOut] = []
        self._changed: list[LeftOut] = []
        self._name = b""

    @property
    def bytes_written(self) -> int:
        return self._bytes

    @property
    def files_written(self) -> int:
        return self._files

    def write(self, part: Part) -> None:
        """FileError for what cannot be written and for a stream that is no tree."""
        try:
            for item in part:
                self._item(item)
        except OSError as error:
            raise FileError(self._sentence(error)) from error

    def done(self) -> Copied:
        """FileError where the stream ended too early."""
        if not self._complete:
            raise FileError(f"the copy to {self._target.path} ended before the tree was whole; copy it again")
        return Copied(
            files=self._files,
            folders=self._folders,
            links=self._link_count,
            bytes=self._bytes,
            left_out=self._left_out,
            left_out_count=self._left_out_count,
            changed=self._changed,
        )

    def close(self) -> None:
        """Closes what is open. Twice is no error."""
        if coming := self._coming:
            self._coming = None
            os.close(coming.fd)
            _unlink(coming.temporary, coming.folder)
        if self._descent:
            self._descent.close()
            self._descent = None

    # -- items

    def _item(self, item: Enter | Leave | File | Extent | Whole | Link | Same | Skipped) -> None:
        if isinstance(item, Skipped):
            return self._skipped(item)
        if self._complete or (self._coming is not None) != isinstance(item, Extent | Whole):
            raise self._no_tree(item)
        match item:
            case File():
                self._file(item)
            case Extent():
                self._extent(item)
            case Whole():
                self._whole(item)
            case Enter():
                self._enter(item)
            case Leave():
                self._leave(item)
            case Link():
                self._link(item)
            case Same():
                self._same(item)

    def _place(self, name: bytes) -> tuple[int, bytes]:
        """(folder, name) of something new in the current folder, or at the top."""
        self._name = name
        if self._descent is None:
            if name or self._target.name in (b"", b".", b".."):
                where = f"{self._target.path} names a folder; a file needs a name"
                raise FileError(where) if not name else self._no_tree(name)
            if kind := kernel_type(self._target.parent):
                raise FileError(
                    f"{self._target.path} is in a file system of the kernel ({kind}): nothing is copied there"
                )
            return self._target.parent, self._target.name
        if not _is_name(name):
            raise self._no_tree(name)
        return self._descent.fd, name

    def _file(self, item: File) -> None:
        folder, name = self._place(item.name)
        if item.data is None:
            self._replaceable(folder, name)
            temporary = _temporary()
            fd = os.open(temporary, _NEW, 0o600, dir_fd=folder)
            self._coming = _Coming(fd, folder, temporary, name, item)
            os.ftruncate(fd, item.size)
            return
        data = item.data

        def make(name: bytes) -> None:
            fd = os.open(name, _NEW, 0o600, dir_fd=folder)
            try:
                _write(fd, data)
                self._finish(fd, item)
            except BaseException:
                _unlink(name, folder)
                raise
            finally:
                os.close(fd)

        self._new(folder, name, make)
        self._bytes += len(data)
        self._count(name, item)

    def _extent(self, item: Extent) -> None:
        coming = self._coming
        assert coming is not None
        if item.offset < 0 or item.offset + len(item.data) > coming.item.size:
            raise self._no_tree(item)
        view, offset = item.data, item.offset
        while view:
            written = os.pwrite(coming.fd, view, offset)
            view, offset = view[written:], offset + written
        self._bytes += len(item.data)

    def _whole(self, item: Whole) -> None:
        coming = self._coming
        assert coming is not None
        if not 0 <= item.size <= coming.item.size:
            raise self._no_tree(item)
        if item.size < coming.item.size:
            os.ftruncate(coming.fd, item.size)
        self._finish(coming.fd, coming.item)
        os.rename(coming.temporary, coming.name, src_dir_fd=coming.folder, dst_dir_fd=coming.folder)
        self._coming = None
        os.close(coming.fd)
        self._count(coming.name, coming.item)

    def _finish(self, fd: int, item: File) -> None:
        if self._target.owner:
            os.fchown(fd, *self._target.owner)
        os.fchmod(fd, item.mode & MODE_BITS)
        os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))

    def _count(self, name: bytes, item: File) -> None:
        self._files += 1
        if self._descent is None:
            self._complete = True
        elif item.number and len(self._numbers) < MOST_HARD_LINKED:
            self._numbers[item.number] = self._descent.names, name

    def _enter(self, item: Enter) -> None:
        self._name = item.name
        self._folders += 1
        if self._descent is None:
            if item.name:
                raise self._no_tree(item)
            return self._enter_top()
        folder, name = self._place(item.name)
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
            made = True
        except FileExistsError:
            made = False
        self._descent.enter(name)
        inside = self._descent.fd
        if made:
            self._own(inside)
        elif os.fstat(inside).st_dev != os.fstat(folder).st_dev:
            self._refuse_kernel(inside)
        self._made.append(made)

    def _enter_top(self) -> None:
        target = self._target
        try:
            top, made = target.folder(), False
        except FileNotFoundError:
            os.mkdir(target.name, 0o700, dir_fd=target.parent)
            top, made = beneath(target.parent, target.name, FOLDER), True
        self._descent = Descent(top)
        self._refuse_kernel(top)
        if made:
            self._own(top)
        self._made.append(made)

    def _leave(self, item: Leave) -> None:
        if self._descent is None or not self._made:
            raise self._no_tree(item)
        if self._made.pop():
            fd = self._descent.fd
            os.fchmod(fd, item.mode & MODE_BITS)
            os.utime(fd, ns=(item.mtime_ns, item.mtime_ns))
        if self._made:
            self._descent.leave()
        else:
            self._complete = True

    def _link(self, item: Link) -> None:
        if self._descent is None:
            raise self._no_tree(item)
        folder, name = self._place(item.name)
        if self._links == "inside" and not _stays(item.target, self._descent.depth):
            why = f"a link that leads out of the tree, to {shown(item.target)}"
            return self._skipped(Skipped(self._descent.path(name), why))

        def make(name: bytes) -> None:
            os.symlink(item.target, name, dir_fd=folder)
            with opened(beneath(folder, name, os.O_PATH | os.O_NOFOLLOW)) as fd:
                self._own(fd)
            os.utime(name, ns=(item.mtime_ns, item.mtime_ns), dir_fd=folder, follow_symlinks=False)

        self._new(folder, name, make)
        self._link_count += 1

    def _same(self, item: Same) -> None:
        known = self._numbers.get(item.number)
        if self._descent is None or known is None:
            raise self._no_tree(item)
        folder, name = self._place(item.name)
        with opened(self._descent.again(known[0])) as source:

            def make(name: bytes) -> None:
                os.link(known[1], name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)

            self._new(folder, name, make)
        self._files += 1

    def _skipped(self, item: Skipped) -> None:
        named = self._changed if item.copied else self._left_out
        self._left_out_count += not item.copied
        if len(named) < MOST_NAMED:
            named.append(LeftOut(path=shown(item.path), why=item.why))

    # -- names

    def _new(self, folder: int, name: bytes, make: Callable[[bytes], None]) -> None:
        """make(name); where that name is taken, under another name that then takes its place at once."""
        try:
            return make(name)
        except FileExistsError:
            self._replaceable(folder, name)
        temporary = _temporary()
        make(temporary)
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            _unlink(temporary, folder)
            raise
        # Two names of one file: rename does nothing, and both are left.
        _unlink(temporary, folder)

    def _replaceable(self, folder: int, name: bytes) -> None:
        try:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        path = self._shown()
        if stat.S_ISDIR(mode):
            cure = f"; to copy into it, write {path}/" if self._descent is None else ": remove it, or copy elsewhere"
            raise FileError(f"{path} is a folder {self._target.side}{cure}")
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileError(f"{path} is a device, FIFO or socket {self._target.side}: remove it, or copy elsewhere")

    def _own(self, fd: int) -> None:
        """Gives what this process has just made to the owner. What is somebody else's was put there meanwhile."""
        if self._target.owner is None or os.fstat(fd).st_uid != os.geteuid():
            return
        if _libc.fchownat(fd, b"", *self._target.owner, _AT_EMPTY_PATH) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def _refuse_kernel(self, fd: int) -> None:
        if kind := kernel_type(fd):
            raise FileError(f"{self._shown()} is in a file system of the kernel ({kind}): nothing is copied there")

    def _shown(self) -> str:
        path = self._descent.path(self._name) if self._descent else b""
        return f"{self._target.path.rstrip('/')}/{shown(path)}" if path else self._target.path

    def _no_tree(self, item: object) -> FileError:
        return FileError(f"the copy to {self._target.path} was ended: what came is no tree of files ({item!r:.200})")

    def _sentence(self, error: OSError) -> str:
        path, side = self._shown(), self._target.side
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{path} cannot be written: no space is left {side}; what came before it was copied"
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
            return f"{path} cannot be made {side}: a link or a file is where the tree has a folder; remove it first"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return f"{path} cannot be written {side}: {os.strerror(error.errno)}; copy to a place that may be written"
        return f"{path} cannot be written {side}: {os.strerror(error.errno or 0)}"


def _is_name(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name


def _stays(target: bytes, depth: int) -> bool:
    """Whether a link in a folder `depth` below the top stays below the top, whatever other such links are there.

    `..` counts at the beginning only: after a name, that name may be a link, and `..` then starts from where it leads.
    """
    names = [name for name in target.split(b"/") if name not in (b"", b".")]
    up = 0
    while up < len(names) and names[up] == b"..":
        up += 1
    return not target.startswith(b"/") and up <= depth and b".." not in names[up:]


def _temporary() -> bytes:
    return TEMPORARY + secrets.token_hex(4).encode()


def _unlink(name: bytes, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # it is gone, or its folder is


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
