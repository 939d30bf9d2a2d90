"""Opening by descriptor, so that nothing in a tree leads out of it, whatever is swapped meanwhile.

In: a descriptor of a folder and names below it. Out: descriptors, or OSError. The kernel resolves (openat2): in a box
`..` and links stay inside its root; in a tree that is copied no link is followed at all. Leaves what is read and
written to files.py and the tree modules.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from rockroll.errors import FileError

SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
DEEPEST = 4000
"""Folders in one another, at most."""
_RETRIES = 64
"""With `..` in a path, any rename on the host may end the look-up with EAGAIN."""
_OPEN_FOLDERS = 32
"""Levels of a tree that hold a descriptor; the others are opened again on the way back."""
_PIECE = 3000
"""Bytes of one path given to the kernel, which takes 4,095."""
_KERNEL_TYPES = {
    0x9FA0: "proc",
    0x62656572: "sysfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
    0x1CD1: "devpts",
    0x64626720: "debugfs",
    0x74726163: "tracefs",
    0x73636673: "securityfs",
    0xCAFE4A11: "bpf",
    0x19800202: "mqueue",
    0x6E736673: "nsfs",
}
_libc = ctypes.CDLL(None, use_errno=True)


def openat2(folder: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """OSError as open() would raise it."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    code = errno.EAGAIN
    for _ in range(_RETRIES):
        fd = _libc.syscall(SYS_OPENAT2, folder, os.fsencode(path), how, len(how))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), path)


def beneath(folder: int, name: bytes, flags: int) -> int:
    """Opens what is below `folder`; a link on the way or at the end is ELOOP."""
    return openat2(folder, name, flags, BENEATH)


def kernel_type(fd: int) -> str | None:
    """The name of the file system where it is one of the kernel's own (proc, sysfs, ...), whose files are switches and
    windows of the host's kernel rather than files of a box."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return _KERNEL_TYPES.get(struct.unpack_from("l", buffer)[0] & 0xFFFFFFFF)


def kernel_secret(fd: int) -> bool:
    """Whether this is a file of the kernel's that is not for everybody. This process may be root of the host and could
    read it all the same, through a link that the box has laid to /proc/kmsg, and so take it from the host's own log."""
    return kernel_type(fd) is not None and not os.fstat(fd).st_mode & 0o004


@contextmanager
def opened(fd: int) -> Iterator[int]:
    """Closes it at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_folder(top: int, names: list[bytes]) -> int:
    """The folder reached from `top` by these names, which may be longer together than the kernel takes at once."""
    fd, names = os.dup(top), list(names)
    while names:
        piece, length = [], 0
        while names and (not piece or length + len(names[0]) < _PIECE):
            piece.append(names.pop(0))
            length += len(piece[-1]) + 1
        with opened(fd):
            fd = beneath(fd, b"/".join(piece), FOLDER)
    return fd


class Descent:
    """The way from a tree's top down to the current folder.

    top: a descriptor, which this object closes. A box may swap any folder of the way for a link or another folder at
    any time: then `enter` fails, or goes to what is there now, which is still in the box.
    """

    def __init__(self, top: int) -> None:
        self._fds: list[int | None] = [top]
        self._names: list[bytes] = []

    @property
    def depth(self) -> int:
        return len(self._names)

    @property
    def names(self) -> tuple[bytes, ...]:
        return tuple(self._names)

    @property
    def fd(self) -> int:
        """Of the current folder."""
        if (fd := self._fds[-1]) is None:
            fd = self._fds[-1] = self.again(self.names)
        return fd

    def path(self, name: bytes = b"") -> bytes:
        """Of a name in the current folder, from the top on."""
        return b"/".join([*self._names, name] if name else self._names)

    def again(self, names: tuple[bytes, ...]) -> int:
        """A new descriptor of the folder with these names from the top on."""
        if (top := self._fds[0]) is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return open_folder(top, list(names))

    def enter(self, name: bytes) -> None:
        """OSError: missing, no folder, or a link."""
        if self.depth >= DEEPEST:
            raise FileError(f"folders are nested more than {DEEPEST} deep: copy a part of the tree")
        fd = beneath(self.fd, name, FOLDER)
        self._fds.append(fd)
        self._names.append(name)
        # The top always keeps its descriptor: it is where the others are found from.
        far = self.depth - _OPEN_FOLDERS
        if far > 0 and (old := self._fds[far]) is not None:
            os.close(old)
            self._fds[far] = None

    def leave(self) -> None:
        self._names.pop()
        if (fd := self._fds.pop()) is not None:
            os.close(fd)

    def close(self) -> None:
        for fd in self._fds:
            if fd is not None:
                os.close(fd)
        self._fds, self._names = [None], []
