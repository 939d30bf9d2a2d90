"""What a box's sessions know, on disk: it outlives their shells, their box's init and the node.

In: the shell state that shell.py collects after a command. Out: the sessions that can be brought back. Leaves replaying
the state to shell.py, and when a session is forgotten to sessions.py.

One file a session, node/sessions/BOX/HASH, mode 0600: sizes and a checksum, the session's name and settings, its state.
Every write is one pwritev to an open descriptor, after the command's answer is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rockroll import home
from rockroll.sandbox.linux.kept import KeptFile

_SIZES = struct.Struct("<III")
"""Bytes of the settings, bytes of the state, CRC-32 of the state."""


class SavedSession(msgspec.Struct, frozen=True):
    """One session as it can come back."""

    name: str
    env: dict[str, str] = {}
    cwd: str | None = None
    state: bytes = b""
    whole: bool = True
    """False: its file was cut off by a kill; the state is empty."""


class Slot:
    """One session's file."""

    def __init__(self, path: Path, session: SavedSession) -> None:
        self._file = KeptFile(path, os.O_RDWR | os.O_CREAT)
        self._head = msgspec.msgpack.encode((session.name, session.env, session.cwd))
        self._state = session.state
        self._soon: asyncio.Handle | None = None
        self._write()

    def keep(self, state: bytes) -> None:
        """The state after the last command; written once this turn of the loop is over."""
        self._state = state
        if self._soon is None and not self._file.closed:
            self._soon = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._soon = None
        sizes = _SIZES.pack(len(self._head), len(self._state), zlib.crc32(self._state))
        with contextlib.suppress(FileNotFoundError):  # the session was forgotten meanwhile
            os.pwritev(self._file.fd(), [sizes, self._head, self._state], 0)

    def close(self) -> None:
        """Nothing is kept any more; what is kept stays."""
        if self._soon is not None:
            self._soon.cancel()
            self._write()
        self._file.close()


class Saved:
    """The files of one box."""

    def __init__(self, sandbox_id: str) -> None:
        self._folder = folder() / sandbox_id

    def slot(self, session: SavedSession) -> Slot:
        """The file of a session that opens now; what was kept under its name goes."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return Slot(self._path(session.name), session)

    def load(self) -> dict[str, SavedSession]:
        """The sessions that there were, by name."""
        files = sorted(self._folder.glob("*")) if self._folder.exists() else []
        return {session.name: session for path in files if (session := _read(path)) is not None}

    def forget(self, name: str) -> None:
        """A session was closed."""
        self._path(name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Every session is forgotten."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def folder() -> Path:
    """Where the files of all boxes are."""
    path = home.node_dir() / "sessions"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def fresh(name: str, env: Mapping[str, str], cwd: str | None) -> SavedSession:
    """A session without a past."""
    return SavedSession(name=name, env=dict(env), cwd=cwd)


def _read(path: Path) -> SavedSession | None:
    data = path.read_bytes()
    try:
        head, size, crc = _SIZES.unpack_from(data)
        name, env, cwd = msgspec.msgpack.decode(
            data[_SIZES.size : _SIZES.size + head], type=tuple[str, dict[str, str], str | None]
        )
    except (struct.error, msgspec.MsgspecError):
        return None  # killed before its first write was whole: no command had run
    state = data[_SIZES.size + head : _SIZES.size + head + size]
    whole = len(state) == size and zlib.crc32(state) == crc
    return SavedSession(name=name, env=env, cwd=cwd, state=state if whole else b"", whole=whole)
