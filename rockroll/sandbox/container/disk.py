"""A limit on all that a box writes: its writable layer lies on a file system of its own, as large as the limit.

In: a box's id, a size, later the folder of the layer that Podman made for it. Out: that folder on the small file
system, so that Podman mounts the box on it and knows nothing of it. Leaves what is in the layer to layer.py.

    node/disks/ID.img ──loop──► node/disks/ID ──bind of its `layer`──► the layer's folder in Podman's storage

Podman's own removal unmounts the bind; `Disk.remove` whatever is mounted of the image, and only then deletes the image.
Nothing here deletes recursively. All of it blocks: call it through `whole`. docs/decisions/008-disk.md has the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from rockroll import home
from rockroll.errors import HostError, SandboxLost
from rockroll.sandbox.config import MIN_DISK, SandboxConfig
from rockroll.sandbox.container import runtime
from rockroll.sandbox.linux import reaper

T = TypeVar("T")
LABEL = "rockroll.disk"
"""On a container whose layer must be on a disk of its own before it may be started."""
BYTES_PER_INODE = 8192
"""One file for each 8 KiB of the limit: node_modules and a Python environment are near that. Its tables take 3 %."""
MNT_DETACH = 2
TIMEOUT_S = 60
_OCTAL = re.compile(rb"\\([0-7]{3})")
"""How /proc writes a space and the like in a path."""
_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class NoDisk(Exception):
    """Why this host cannot limit a disk, in words; never leaves this room."""


class Disk:
    """The disk of one box.

    (nothing) ── make ──► mounted ── attach ──► under the box ── remove ──► (nothing)
                              ▲ after a reboot: attach
    """

    def __init__(self, sandbox_id: str) -> None:
        self.image = disks_dir() / f"{sandbox_id}.img"
        self.point = disks_dir() / sandbox_id

    def exists(self) -> bool:
        return self.image.exists() or self.point.exists()

    def make(self, size: int, owner: int, resolvers: bool) -> list[dict[str, Any]]:
        """Makes and mounts it; the OCI mounts that the container needs. Raises NoDisk, and leaves nothing then.

        owner: the host's id of the box's root. resolvers: whether the box has a network, and so name servers.
        """
        if runtime.is_rootless():
            raise NoDisk("an ordinary user cannot mount the image that a disk limit is made of")
        self.point.mkdir()
        try:
            with self.image.open("xb") as file:
                os.truncate(file.fileno(), size)
            # No journal: after a crash e2fsck looks at it. Nothing written ahead: a disk of 20g takes 0.3m at first.
            features = "^has_journal,^resize_inode"
            layout = ("-b", "4096", "-i", str(BYTES_PER_INODE), "-m", "0", "-O", features)
            _tool("mke2fs", "-q", "-F", "-t", "ext4", *layout, "-E", "lazy_itable_init=1,nodiscard", str(self.image))
            self._mount()
            return self._own_files(owner, resolvers)
        except BaseException:
            self.remove()
            raise

    def attach(self, layer: Path) -> None:
        """Puts the disk under the layer's folder in Podman's storage, with what is in it; nothing where it is there.

        Raises HostError where the image is gone or broken: the box's files are on it, and it must not start blank.
        """
        if not self.image.exists():
            raise HostError(
                f"the disk of this sandbox is gone ({self.image} is missing), and its files with it; remove the sandbox"
                " (`rockroll sandbox down ID`) and make a new one"
            )
        try:
            if not os.path.ismount(self.point):
                self.point.mkdir(exist_ok=True)
                _tool("e2fsck", "-p", str(self.image), good=(0, 1))
                self._mount()
            ours = self.point / "layer"
            if not ours.exists():
                # In two steps: a node that is killed between them must not leave half a layer under this name.
                _tool("cp", "-a", "--", str(layer), f"{ours}.new")
                Path(f"{ours}.new").rename(ours)
            if os.stat(layer).st_dev != os.stat(ours).st_dev:
                _tool("mount", "--bind", str(ours), str(layer))
        except NoDisk as error:
            raise HostError(f"the disk of this sandbox ({self.image}) cannot be mounted: {error}") from None

    def under(self, layer: Path) -> bool:
        """Whether what is written into that folder goes to this disk."""
        return os.stat(layer).st_dev == os.stat(self.point).st_dev

    def remove(self) -> None:
        """Unmounts it wherever it is and deletes it. Raises HostError where it stays mounted; it is then kept."""
        for point in reversed(self._mounted()):
            if _libc.umount2(os.fsencode(point), 0) != 0:
                # Somebody has a file of it open: it leaves the tree now, and is freed with that file.
                _libc.umount2(os.fsencode(point), MNT_DETACH)
        if left := self._mounted():
            raise HostError(f"{self.image} is still mounted at {left[-1]}; unmount it by hand: umount {left[-1]}")
        with contextlib.suppress(FileNotFoundError):
            self.point.rmdir()
        self.image.unlink(missing_ok=True)

    def _mount(self) -> None:
        # -o loop frees the loop device with the last mount, and takes the same device again for the same image: two
        # devices on one image would destroy it. discard: what the box deletes is free again on the host.
        _tool("mount", "-t", "ext4", "-o", "loop,noinit_itable,discard,nosuid,nodev", str(self.image), str(self.point))

    def _mounted(self) -> list[str]:
        """Where the image is mounted, in the order of mounting."""
        devices = set()
        for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if loop.read_bytes().strip().removesuffix(b" (deleted)") == os.fsencode(self.image):
                    devices.add((loop.parent.parent / "dev").read_bytes().strip())
            except OSError:
                continue  # freed meanwhile
        points = []
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines() if devices else ():
            fields = line.split(b" ")
            if fields[2] in devices:
                points.append(os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), fields[4])))
        return points

    def _own_files(self, owner: int, resolvers: bool) -> list[dict[str, Any]]:
        """The single files that Podman otherwise keeps beside its own, where a box could fill the host's disk."""
        texts = {
            "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
            "/etc/hostname": "sandbox\n",
            "/run/.containerenv": "",
        }
        if resolvers:
            texts["/etc/resolv.conf"] = _name_servers()
        mounts = []
        for destination, text in texts.items():
            path = self.point / Path(destination).name
            path.write_text(text)
            path.chmod(0o644)
            os.chown(path, owner, owner)
            options = ["bind", "rw", "nosuid", "nodev"]
            mounts.append({"type": "bind", "source": str(path), "destination": destination, "options": options})
        return mounts


def disks_dir() -> Path:
    """Where the images and their mount points are."""
    folder = home.node_dir() / "disks"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder.resolve()  # as the kernel names it


async def whole(work: Callable[[], T]) -> T:
    """Work of this file, in a thread and to its end even where the caller is cancelled: half a mount has no owner."""
    with reaper.starting():
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if error := task.exception():
                _log.warning("a disk, after its caller had gone: %s", error)
            raise


def unenforced(pid: int, config: SandboxConfig) -> list[str]:
    """["disk"] where the box of pid can write more than its config says."""
    limit = config.disk_bytes
    return ["disk"] if limit is not None and usage(pid)[1] > limit else []


def usage(pid: int) -> tuple[int, int]:
    """(bytes taken, bytes in all) of the file system that the box of pid writes to, its own disk or the host's.

    Raises SandboxLost when pid is gone."""
    try:
        seen = os.statvfs(f"/proc/{pid}/root")
    except OSError:
        raise SandboxLost(f"the sandbox's first process {pid} is gone") from None
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize, seen.f_blocks * seen.f_frsize


def probe() -> str | None:
    """Why this host cannot limit a disk; None where one was made, mounted and removed."""
    disk = Disk(f"doctor-{os.getpid()}")
    try:
        disk.make(MIN_DISK, os.getuid(), resolvers=False)
    except NoDisk as error:
        return str(error)
    disk.remove()
    return None


def sweep(keep: Collection[str]) -> None:
    """Removes the disks of boxes that there are no more; those of the ids in `keep` stay."""
    for id in {path.name.removesuffix(".img") for path in disks_dir().iterdir()} - set(keep):
        try:
            Disk(id).remove()
        except (HostError, OSError) as error:
            _log.error("the disk of an earlier sandbox stays: %s", error)


def _name_servers() -> str:
    """The host's, without those that only listen on the host's own loopback."""
    for place in ("/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"):
        with contextlib.suppress(OSError):
            lines = Path(place).read_text().splitlines(keepends=True)
            return "".join(line for line in lines if not line.startswith(("nameserver 127.", "nameserver ::1")))
    return ""


def _tool(name: str, *arguments: str, good: Collection[int] = (0,)) -> None:
    """Runs a program of the host. Raises NoDisk with what it said."""
    path = runtime.which(name)
    if path is None:
        package = "e2fsprogs" if name in ("mke2fs", "e2fsck") else "util-linux"
        raise NoDisk(f"{name} is not installed; apt install {package}")
    try:
        done = subprocess.run([path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NoDisk(f"{name} gave no answer within {TIMEOUT_S} s") from None
    if done.returncode not in good:
        said = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise NoDisk(f"{name}: {said.splitlines()[-1]}")
