"""Folders of written layers and images, as streams of bytes from one host to another.

In: a folder of a writable layer, or an image of the local store. Out: pieces of a tar whose memory is bounded by the
reader, and the same folder or image at the other end, or an error and nothing. Leaves the way between hosts to
node/bring.py. Sockets are left out: nobody listens behind a copied one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from rockroll.errors import SandboxError
from rockroll.sandbox.container.layer import NoSpace
from rockroll.sandbox.linux import reaper

PIECE = 256 << 10
"""Bytes of a piece."""
_EXACT = ("--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*")
OCI = "application/vnd.oci.image.manifest.v1+json"


def archive_format(manifest: str | None) -> str:
    """The archive that keeps an image's id, which is the digest of its configuration: of its manifest's own kind."""
    return "oci-archive" if manifest == OCI else "docker-archive"


async def pack(folder: Path) -> AsyncGenerator[bytes, None]:
    """The folder as a tar, with modes, owners, times, links, holes, extended attributes and overlay marks. Nothing may
    write to it. Raises SandboxError. Whoever leaves it early closes it."""
    process = await _tar("--create", "--sparse", "--warning=no-file-ignored", f"--directory={folder}", ".", out=True)
    try:
        assert process.stdout
        while data := await process.stdout.read(PIECE):
            yield data
        await _ended(process, "packed")
    finally:
        await _end(process)


async def unpack(pieces: AsyncIterator[bytes], folder: Path) -> None:
    """Into an empty folder, whose own mode and owner come with it. Raises NoSpace, SandboxError, and what `pieces`
    raises; then the folder is half full."""
    process = await _tar("--extract", "--same-permissions", "--same-owner", f"--directory={folder}", out=False)
    try:
        assert process.stdin
        try:
            async for data in pieces:
                process.stdin.write(data)
                await process.stdin.drain()
            process.stdin.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it says why below
        await _ended(process, "unpacked")
    finally:
        await _end(process)


async def _tar(*argv: str, out: bool) -> asyncio.subprocess.Process:
    # Not for as long as it runs: zombies of others would stay, and a transfer may take minutes.
    with reaper.starting():
        return await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "tar", *_EXACT, "--file=-", *argv),  # it ends with the node
            stdin=asyncio.subprocess.DEVNULL if out else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if out else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )


async def _ended(process: asyncio.subprocess.Process, what: str) -> None:
    assert process.stderr
    with reaper.starting():
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        code = await process.wait()
    if any("No space left" in line for line in said):
        raise NoSpace("no disk space is left where this node keeps snapshots; free some and try again")
    if code != 0:
        raise SandboxError(f"a sandbox's files could not be {what}: {said[0] if said else 'tar ended early'}")


async def _end(process: asyncio.subprocess.Process) -> None:
    with reaper.starting():
        if process.returncode is None:
            process.kill()
        await process.communicate()  # which closes its pipes, too


def digest(folder: Path) -> str:
    """BLAKE2b over what `pack` keeps of a folder: two with one digest are the same, file by file. Blocks.

    Raises SandboxError where a path is longer than the kernel takes.
    """
    total = hashlib.blake2b(digest_size=32)
    seen: dict[tuple[int, int], bytes] = {}
    waiting, name = [b"."], b"."
    root = os.fsencode(folder)
    try:
        while waiting:
            name = waiting.pop()
            path = root + b"/" + name
            found = os.lstat(path)
            if stat.S_ISSOCK(found.st_mode):
                continue
            first = seen.setdefault((found.st_dev, found.st_ino), name)
            marks = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in _marks(path)]
            of_type: bytes | int = b""
            if stat.S_ISLNK(found.st_mode):
                of_type = os.readlink(path)  # noqa: PTH115 - bytes, as names are
            elif stat.S_ISREG(found.st_mode) and first == name:
                with open(path, "rb") as file:
                    of_type = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest()
            elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
                of_type = found.st_rdev
            elif stat.S_ISDIR(found.st_mode):
                waiting += [name + b"/" + each for each in sorted(os.listdir(path), reverse=True)]  # noqa: PTH208
            kept = (name, found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, first, marks, of_type)
            total.update(repr(kept).encode())
    except OSError as error:
        raise SandboxError(f"a sandbox's files cannot be read to be moved: {error.strerror}: {name[:200]!r}") from None
    return total.hexdigest()


def _marks(path: bytes) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))
