"""Changes in folders, as the kernel tells them.

In: folders of this host. Out: a call on the event loop for every change, with the folder's key and the file's name.
Leaves what a change means to live.py. Nothing is asked for again and again: one inotify instance, read when it has
something.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from rockroll.errors import HostError

Key = TypeVar("Key")
_CLOSE_WRITE, _MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x2, 0x40, 0x80, 0x100, 0x200
_IGNORED, _ONLY_FOLDERS = 0x8000, 0x01000000
_MASK = _CLOSE_WRITE | _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLY_FOLDERS
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch(Generic[Key]):
    """Belongs to one event loop. changed: told (key, name of the file in that folder); an overflow is told as
    (None, "")."""

    def __init__(self, changed: Callable[[Key | None, str], None]) -> None:
        """HostError where the host gives no inotify instance."""
        self._changed = changed
        self._keys: dict[int, Key] = {}
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise HostError(
                f"this host gives no inotify instance ({os.strerror(ctypes.get_errno())}): end programs that watch "
                "files, or raise fs.inotify.max_user_instances"
            )
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def add(self, folder: Path, key: Key) -> bool:
        """Watch a folder, not those in it; False where it is not there. Once more is the same as once."""
        number = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _MASK)
        if number >= 0:
            self._keys[number] = key
        return number >= 0

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        at = 0
        while at < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if mask & _IGNORED:
                self._keys.pop(number, None)
            elif number < 0:
                self._changed(None, "")
            elif number in self._keys:
                self._changed(self._keys[number], os.fsdecode(name))
