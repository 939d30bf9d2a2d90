"""Folders from one machine to another, in bounded pieces, once.

In: a path on a machine that serves `handlers()`. Out: the same files in a folder named by their content, checked byte
for byte. Leaves the link (CURVE) to rpc, and which machine asks which to far.py.

    tree: names, sizes, digests ──► is a folder of that digest here? ──► no: each file as a stream of pieces ──► rename
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from rockroll import rpc
from rockroll.errors import HostError

PIECE = 1 << 20
"""Bytes of a piece; a stream has 16 of them under way at most (rpc/frame.py), so 16 MB of memory, however large the
file."""


class File(msgspec.Struct, frozen=True):
    name: str
    """Relative to the folder."""
    size: int
    digest: str
    """BLAKE2b of its bytes."""


class Tree(msgspec.Struct, frozen=True):
    files: list[File]

    @property
    def digest(self) -> str:
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=16).hexdigest()


class Read(msgspec.Struct, frozen=True):
    path: str
    name: str


def tree(path: Path) -> Tree:
    """What is in a folder; links are followed. HostError where there is none. Blocks for as long as hashing takes."""
    if not path.is_dir():
        raise HostError(f"there is no folder {path} to be sent to another node")
    found = []
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        stat = file.stat()
        found.append(File(str(file.relative_to(path)), stat.st_size, _digest(file, stat.st_size, stat.st_mtime_ns)))
    return Tree(found)


@lru_cache(maxsize=4096)
def _digest(file: Path, _size: int, _mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


async def _tree(body: str, _peer: rpc.Peer) -> Tree:
    return await asyncio.to_thread(tree, Path(body))


async def _read(body: Read, _peer: rpc.Peer) -> AsyncIterator[bytes]:
    with (Path(body.path) / body.name).open("rb") as stream:
        while piece := await asyncio.to_thread(stream.read, PIECE):
            yield piece


def handlers() -> dict[str, rpc.Handler]:
    return {"tree": _tree, "read": _read}


TYPES: dict[str, Any] = {"tree": str, "read": Read}


async def fetch(source: rpc.Client, path: str, folder: Path) -> Path:
    """The folder `path` of the machine behind `source`, as `folder`/DIGEST; nothing is sent where that is there.

    Several processes of this machine may ask at once: one fetches, the others wait. Raises HostError where what came is
    not what was announced, PeerLost where the other machine goes.
    """
    wanted = await source.call("tree", path, type=Tree)
    target = folder / wanted.digest
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / f"{wanted.digest}.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if target.is_dir():
            os.utime(target)
            return target
        partial = folder / f"{wanted.digest}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for file in wanted.files:
                await _copy(source, Read(path, file.name), file, partial / file.name)
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise HostError(f"{path} cannot be written to {target}: {error.strerror}; free some disk") from error
    return target


async def _copy(source: rpc.Client, what: Read, file: File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    seen = hashlib.blake2b(digest_size=16)
    with target.open("wb") as out:
        async with aclosing(source.stream("read", what, type=bytes)) as pieces:
            async for piece in pieces:
                seen.update(piece)
                out.write(piece)
    if seen.hexdigest() != file.digest:
        raise HostError(f"{what.path}/{what.name} changed while it was sent to another node; begin again")


async def fetch_latest(source: rpc.Client, path: str, folder: Path) -> Path:
    """As `fetch`, of what is written anew again and again; it stays until the second one after it has come: the one
    before may still be read by another process of this machine."""
    before = [each for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []
    got = await fetch(source, path, folder)
    kept = [each for each in before if each != got and each.suffix != ".partial" and each.exists()]
    for each in sorted(kept, key=lambda each: each.stat().st_mtime)[:-1]:
        shutil.rmtree(each, ignore_errors=True)
    return got
