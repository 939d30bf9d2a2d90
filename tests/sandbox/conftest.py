"""A real sandbox host in the test's own process: tests look at processes, cgroups and files from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from rockroll import home, rpc
from rockroll.sandbox import wire
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.net.resolve import Resolve
from rockroll.sandbox.node.host import SandboxHost
from tests.conftest import IS_ROOT, LIMITS_HOLD, allow_unenforced

only_root = pytest.mark.skipif(not IS_ROOT, reason="an ordinary user's boxes share the user namespace of his Podman")


class Lab:
    """A SandboxHost and one box of it. Calls go through the host's handlers, as from a connection of its own."""

    def __init__(self, host: SandboxHost, **config: Any) -> None:
        self.host = host
        self.handlers = host.handlers()
        self.config = {"memory": "128m", "pids": 64, "allow_unenforced": not LIMITS_HOLD, **config}
        self.peer = cast(rpc.Peer, type("Peer", (), {"id": f"lab-{id(self)}", "pid": os.getpid()})())
        self.id = ""

    @property
    def box(self) -> Box:
        return self.host._boxes[self.id]

    async def up(self) -> Lab:
        self.id = (await self.call("sandbox.create", wire.Create(config=self.config))).id
        return self

    async def call(self, method: str, body: wire.Struct) -> Any:
        return await self.handlers[method](body, self.peer)

    async def run(self, command: str | bytes, timeout: float | None = 20, **more: Any) -> wire.Observation:
        code = command.encode() if isinstance(command, str) else command
        return await self.call("session.run", wire.Run(id=self.id, command=code, timeout=timeout, **more))

    async def out(self, command: str | bytes, **more: Any) -> str:
        """Standard output, stripped, of a command that must do well."""
        done = await self.run(command, **more)
        assert (done.outcome, done.exit_code) == ("ok", 0), done
        return done.stdout.decode().strip()

    async def execute(self, *argv: str, **more: Any) -> wire.Observation:
        return await self.call("execute", wire.Execute(id=self.id, argv=list(argv), **{"timeout": 20, **more}))

    async def recycle(self) -> wire.Recycled:
        return await self.call("sandbox.recycle", wire.Ref(id=self.id))

    async def new_session(self, name: str, **more: Any) -> str:
        await self.call("session.create", wire.SessionSpec(id=self.id, session=name, **more))
        return name

    async def until_saved(self, word: bytes, session: str = "default") -> None:
        """What the last command did is on disk: bash takes a millisecond after the answer to tell."""
        async with asyncio.timeout(5):
            while word not in self.box.sessions.saved.load()[session].state:
                await asyncio.sleep(0.002)

    def processes(self) -> list[int]:
        """Every process of the box but init, as the host sees them."""
        assert self.box.hull.cgroup is not None
        return self.box.hull.cgroup.everything()

    def named(self, word: str) -> list[int]:
        """Those that have the word as one of their arguments."""
        return [pid for pid in self.processes() if word.encode() in _command_line(pid).split(b"\0")]

    async def until_none(self, word: str) -> None:
        """A SIGKILL has been sent; a dying process is still listed for a moment."""
        async with asyncio.timeout(2):
            while self.named(word):
                await asyncio.sleep(0.001)


def left_mounted(word: str) -> list[str]:
    """Mounts and loop devices on this host that have the word (a box's id, a home) in a path.

    The kernel frees a box's mounts a moment after its last process has been waited for.
    """
    end = time.monotonic() + 2
    while found := [line for line in _mounts_and_loops() if word in line]:
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return found


def _mounts_and_loops() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # freed meanwhile
            lines.append(path.read_text())
    return lines


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def resolve() -> Resolve | None:
    """What addresses names have for the boxes of this file; None: as this host sees it."""
    return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory, resolve: Resolve | None) -> AsyncIterator[SandboxHost]:
    """A host with a home of this test file's own; everything is gone at the end."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        allow_unenforced(path)
        patch.setenv("ROCKROLL_HOME", str(path))
        host = SandboxHost(resolve=resolve)
        await host.start()
        yield host
        await host.close()
        assert not any((home.runtime_dir() / "b").iterdir()), "a box left its folder behind"
        assert not left_mounted(str(home.home())), "a box left its disk behind"
        shutil.rmtree(home.runtime_dir())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(host: SandboxHost) -> Lab:
    """One box for the tests of a file that leave it usable."""
    return await Lab(host).up()


@pytest_asyncio.fixture(loop_scope="module")
async def lab(host: SandboxHost) -> AsyncIterator[Lab]:
    """A box of the test's own."""
    lab = await Lab(host).up()
    yield lab
    if lab.id in host._boxes:
        await lab.call("sandbox.delete", wire.Ref(id=lab.id))


@pytest.fixture
def deep_path(tmp_path: Path) -> Iterator[Path]:
    """A folder for trees that are too deep for pytest's own cleaning up."""
    yield tmp_path
    subprocess.run(["rm", "-rf", tmp_path], check=True)


needs_cgroups = pytest.mark.skipif(
    not os.access("/sys/fs/cgroup", os.W_OK) or not IS_ROOT, reason="this host gives no cgroups to this user"
)
