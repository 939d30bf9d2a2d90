"""Files of a sandbox, read and written from outside it, by paths that cannot lead out of it.

In: the pid of the box's init, a path as the box sees it. Out: bytes, or a FileError. Every path is resolved by the
kernel inside the box's root (openat2: RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS), so that `..`, absolute links and links
swapped meanwhile stay inside; only regular files and folders are opened, never a FIFO or device. All of it blocks:
call it from a thread. Leaves whole trees to tree_read.py and tree_write.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

from rockroll.errors import FileError, SandboxError, SandboxLost
from rockroll.sandbox.fs.tree import shown
from rockroll.sandbox.fs.tree_write import Target
from rockroll.sandbox.linux.beneath import (
    FOLDER,
    IN_ROOT,
    Descent,
    beneath,
    kernel_secret,
    kernel_type,
    openat2,
    opened,
)
from rockroll.sandbox.wire import FileChunk, FileStat

READ_LIMIT = 64 << 20
LISTED_AT_ONCE = 2000
MOST_LISTED = 100_000
"""Entries of one folder's listing, and folders that wait for their turn in a walk: a box makes millions in a minute."""
SIDE = "in the sandbox"


def host_id(pid: int, kind: Literal["uid", "gid"], inside: int) -> int:
    """What a uid or gid of the box of pid is called in this process's user namespace. SandboxLost when pid is gone."""
    try:
        if Path(f"/proc/{pid}/ns/user").stat().st_ino == Path("/proc/self/ns/user").stat().st_ino:
            return inside  # an ordinary user's: the map of one's own namespace tells what it is called outside of it
        lines = Path(f"/proc/{pid}/{kind}_map").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxLost("the sandbox is not running") from None
    for line in lines:
        first, there, count = map(int, line.split())
        if first <= inside < first + count:
            return there + inside - first
    return os.getuid()  # not mapped: nobody in the box can be it either


@contextmanager
def root_of(pid: int) -> Iterator[int]:
    """A descriptor of the root folder that pid sees. Raises SandboxLost."""
    try:
        fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise SandboxLost("the sandbox is not running: its files cannot be reached") from None
    try:
        # A pid that somebody else has by now: a process of this host sees this host's files.
        if os.path.samestat(os.fstat(fd), os.stat("/")):
            raise SandboxLost("the sandbox is not running: its files cannot be reached")
        yield fd
    finally:
        os.close(fd)


def open_in(root: int, path: str, flags: int, mode: int = 0) -> int:
    """openat2 below `root`; OSError as open() would raise it."""
    return openat2(root, path, flags, IN_ROOT, mode)


def null(pid: int, flags: int) -> int:
    """A descriptor of the box's own /dev/null. SandboxError where the box has put something else there.

    Not the host's: through a descriptor a file's mode can be changed, and root of a box without a user namespace of its
    own is root.
    """
    with root_of(pid) as root, _told("/dev/null", "opened"), opened(open_in(root, "/dev/null", os.O_PATH)) as look:
        status = os.fstat(look)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
            raise SandboxError("the sandbox has replaced its /dev/null, and nothing can be started in it; restart it")
        return os.open(f"/proc/self/fd/{look}", flags | os.O_CLOEXEC)


def write(pid: int, path: str, data: bytes, mode: int, append: bool, owner: tuple[int, int]) -> None:
    """Writes a file; makes it and its folders where missing, owned by `owner` (uid, gid on this host).

    mode: set unless appending to a file that exists.
    """
    _check(path)
    with root_of(pid) as root, _told(path, "written"):
        parent = _parents(root, str(PurePosixPath(path).parent), owner)
        try:
            name = PurePosixPath(path).name
            if not name or name == "..":
                raise FileError(f"{path} names a folder; a file needs a name")
            new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                fd, made = os.open(name, new, 0o600, dir_fd=parent), True
            except FileExistsError:
                # Resolved from the root once more: it may be a link, and a link may be absolute.
                fd, made = _regular(root, path, os.O_WRONLY | (os.O_APPEND if append else 0)), False
        finally:
            os.close(parent)
        try:
            if kind := kernel_type(fd):
                raise FileError(f"{path} is in a file system of the kernel ({kind}): nothing is written there")
            if made:
                os.fchown(fd, *owner)
            if not append:
                os.ftruncate(fd, 0)
            if made or not append:
                os.fchmod(fd, mode & 0o7777)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)


def read(pid: int, path: str, offset: int, limit: int) -> FileChunk:
    """At most `limit` bytes from offset, and the file's whole size."""
    _check(path)
    if offset < 0 or limit < 0:
        raise FileError(f"offset and limit are zero or more; got {offset} and {limit}")
    with root_of(pid) as root, _told(path, "read"):
        fd = _regular(root, path, os.O_RDONLY)
        try:
            status = os.fstat(fd)
            if kernel_secret(fd):
                raise FileError(f"{path} is the kernel's, and not everybody may read it: read it with a command")
            parts: list[bytes] = []
            left = min(limit, READ_LIMIT)
            while left > 0 and (data := os.pread(fd, min(left, 1 << 20), offset)):
                parts.append(data)
                offset += len(data)
                left -= len(data)
            return FileChunk(data=b"".join(parts), size=max(status.st_size, offset), mode=stat.S_IMODE(status.st_mode))
        finally:
            os.close(fd)


def list_folder(pid: int, path: str) -> list[FileStat]:
    """What is in a folder, by name; links are not followed."""
    _check(path)
    with root_of(pid) as root, _told(path, "listed"), opened(open_in(root, path, _LIST)) as fd:
        found = list(islice(_stats(fd, b""), MOST_LISTED + 1))
        if len(found) > MOST_LISTED:
            raise FileError(f"{path} holds more than {MOST_LISTED:,} entries: walk it, which lists it in parts")
        return sorted(found, key=lambda entry: entry.name)


def walk(pid: int, path: str) -> Generator[list[FileStat], None, None]:
    """What is in a folder and in all below it, in no order; names are paths from the folder on. Links are not followed,
    and the kernel's own file systems not entered."""
    _check(path)
    with root_of(pid) as root, _told(path, "listed"):
        way = Descent(open_in(root, path, _LIST))
        try:
            found = _walked(way, path)
            while part := list(islice(found, LISTED_AT_ONCE)):
                yield part
        finally:
            way.close()


def _walked(way: Descent, top: str) -> Iterator[FileStat]:
    waiting: list[list[bytes]] = [[]]
    stats, folders = _stats(way.fd, b""), 0
    while waiting:
        for found in stats:
            if found.kind == "dir":
                waiting[-1].append(found.path_bytes.rpartition(b"/")[2])
                folders += 1
                if folders > MOST_LISTED:
                    raise FileError(f"{top} holds more than {MOST_LISTED:,} folders side by side: walk a part of it")
            yield found
        if not waiting[-1]:
            waiting.pop()
            if waiting:
                way.leave()
            continue
        folders -= 1
        try:
            way.enter(waiting[-1].pop())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            continue  # removed or replaced since it was listed
        waiting.append([])
        stats = iter(()) if kernel_type(way.fd) else _stats(way.fd, way.path() + b"/")


def look(pid: int, path: str, follow: bool) -> FileStat | None:
    """What is at a path; None where there is nothing. follow: the link at its end, too."""
    _check(path)
    with root_of(pid) as root, _told(path, "looked at"):
        try:
            fd = open_in(root, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        except (FileNotFoundError, NotADirectoryError):
            return None
        with opened(fd):
            return _stat(os.fsencode(PurePosixPath(path).name), os.fstat(fd), fd)


def make_folder(pid: int, path: str, mode: int, owner: tuple[int, int]) -> None:
    """Makes a folder and what is missing above it. One that is there already stays as it is."""
    _check(path)
    with root_of(pid) as root, _told(path, "made"):
        try:
            os.close(open_in(root, path, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            with opened(_parents(root, path, owner)) as fd, opened(beneath(fd, b".", FOLDER)) as made:
                os.fchmod(made, mode & 0o7777)


def remove(pid: int, path: str, recursive: bool) -> None:
    """Removes a file, a link (not what it points to) or an empty folder; with `recursive`, a folder and what is in it.
    What is mounted in it is an error, and stays."""
    with root_of(pid) as root, _told(path, "removed"), _named(root, path) as (parent, name):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return os.unlink(name, dir_fd=parent)
        if recursive:
            _empty(beneath(parent, os.fsencode(name), FOLDER), os.fstat(parent).st_dev)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise FileError(f"{path} is a folder with something in it: remove it with recursive=True") from None


def move(pid: int, source: str, target: str, owner: tuple[int, int]) -> None:
    """Renames; a file at the target is replaced at once, folders above it are made. Links are moved, not followed."""
    with root_of(pid) as root, _told(source, "moved"), _named(root, source) as (parent, name):
        os.stat(name, dir_fd=parent, follow_symlinks=False)
        _check(target)
        with _told(target, "made"):
            os.close(_parents(root, str(PurePosixPath(target).parent), owner))
            with _named(root, target) as (new_parent, new_name):
                try:
                    os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent)
                except OSError as error:
                    if said := _WHY_NOT_MOVED.get(error.errno or 0):
                        raise FileError(f"{source} cannot be moved to {target}: {said}") from None
                    raise


@contextmanager
def tree_source(pid: int, path: str) -> Iterator[int]:
    """A descriptor for read_tree of what is at a path; links are followed inside the box."""
    _check(path)
    with root_of(pid) as root, _told(path, "read"), opened(open_in(root, path, os.O_PATH)) as fd:
        yield fd


@contextmanager
def tree_target(pid: int, path: str, owner: tuple[int, int]) -> Iterator[Target]:
    """Where TreeWriter puts a tree that goes to this path; the folders above it are made."""
    _check(path)
    pure = PurePosixPath(path)
    with root_of(pid) as root, _told(path, "written"), opened(_parents(root, str(pure.parent), owner)) as parent:
        yield Target(
            parent=parent,
            name=os.fsencode(pure.name),
            folder=lambda: open_in(root, path, _LIST),
            path=shown(os.fsencode(path)),
            side=SIDE,
            owner=owner,
        )


_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
_WHY_NOT_MOVED = {
    errno.EXDEV: "they are on two file systems of the sandbox; copy it, then remove it",
    errno.ENOTEMPTY: "a folder with something in it is there; remove it first",
    errno.EEXIST: "a folder with something in it is there; remove it first",
    errno.EISDIR: "a folder is there, and a file cannot replace it; remove it first, or name a file in it",
    errno.ENOTDIR: "a file is there, and a folder cannot replace it; remove it first",
    errno.EINVAL: "a folder cannot go into itself",
    errno.EBUSY: "something is mounted there",
}


@contextmanager
def _named(root: int, path: str) -> Iterator[tuple[int, str]]:
    """(a descriptor of the folder, the name in it) of something that is itself meant, be it a link."""
    _check(path)
    pure = PurePosixPath(path)
    if pure.name in ("", ".."):
        raise FileError(f"{path} is no name in a folder; write the path without `..` at its end")
    with opened(open_in(root, str(pure.parent), os.O_PATH | os.O_DIRECTORY)) as parent:
        yield parent, pure.name


def _empty(top: int, device: int) -> None:
    """Removes what is in a folder; closes `top`. Never enters another mount: what is there is somebody else's."""
    way = Descent(top)
    try:
        if os.fstat(top).st_dev != device:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        waiting = [_clear(way.fd)]
        while waiting:
            if waiting[-1]:
                way.enter(waiting[-1][-1])
                if os.fstat(way.fd).st_dev != device:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                waiting.append(_clear(way.fd))
            else:
                waiting.pop()
                if waiting:
                    way.leave()
                    os.rmdir(waiting[-1].pop(), dir_fd=way.fd)
    finally:
        way.close()


def _clear(folder: int) -> list[bytes]:
    """Removes all but the folders in it, whose names are returned."""
    folders: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(os.fsencode(entry.name))
            else:
                os.unlink(entry.name, dir_fd=folder)
    return folders


def _stats(folder: int, before: bytes) -> Iterator[FileStat]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                yield _stat(before + os.fsencode(entry.name), entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue  # removed since it was listed


def _stat(name: bytes, status: os.stat_result, link: int | None = None) -> FileStat:
    text, kind = shown(name), _kind(status.st_mode)
    return FileStat(
        name=text,
        kind=kind,
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        mtime=status.st_mtime,
        raw=None if text.encode() == name else name,
        target=shown(os.readlink(b"", dir_fd=link)) if kind == "link" and link is not None else None,
    )


def _regular(root: int, path: str, flags: int) -> int:
    """Opens a regular file. Looks first, without opening: opening a device or a FIFO already does something."""
    look = open_in(root, path, os.O_PATH)
    try:
        kind = _kind(os.fstat(look).st_mode)
        if kind != "file":
            raise FileError(f"{path} is a {'folder' if kind == 'dir' else 'special file'}, not a regular file")
        return os.open(f"/proc/self/fd/{look}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(look)


def _parents(root: int, path: str, owner: tuple[int, int]) -> int:
    """A descriptor of the folder at path, made with all above it where missing."""
    folder = os.O_PATH | os.O_DIRECTORY
    try:
        return open_in(root, path, folder)
    except FileNotFoundError:
        above = PurePosixPath(path)
        if above.name in ("", ".."):
            raise
    parent = _parents(root, str(above.parent), owner)
    try:
        try:
            os.mkdir(above.name, 0o755, dir_fd=parent)
            with opened(beneath(parent, os.fsencode(above.name), FOLDER)) as made:
                if os.fstat(made).st_uid == os.geteuid():  # else the box has put another folder there meanwhile
                    os.fchown(made, *owner)
        except FileExistsError:
            pass  # made meanwhile, or a link that leads nowhere: the next line tells
    finally:
        os.close(parent)
    return open_in(root, path, folder)


def _check(path: str) -> None:
    if not path.startswith("/"):
        raise FileError(f"a path in the sandbox is absolute, as in /root/notes.txt; got {path!r}")
    if "\0" in path:
        raise FileError(f"a path cannot hold a NUL byte; got {path!r}")
    if len(PurePosixPath(path).parts) > 500:
        raise FileError(f"a path of {len(PurePosixPath(path).parts)} folders is too deep: 500 at most")


@contextmanager
def _told(path: str, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FileError(f"{path} cannot be {done}: no space is left in the sandbox") from error
        if error.errno == errno.ENOENT:
            raise FileError(f"{path}: no such file or folder in the sandbox") from error
        raise FileError(f"{path} cannot be {done}: {os.strerror(error.errno or 0)}") from error


def _kind(mode: int) -> Literal["file", "dir", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "link" if stat.S_ISLNK(mode) else "other"
