"""One process of a run on a node of the cluster, and the link by which the run's driver holds it.

In: a key, and calls over tcp with CURVE from whoever holds the same. Out: a child process with its log, told of until
its end; folders fetched for it from other nodes. It ends its child, and itself, when the driver is gone. Leaves placing
it to places.py, the driver's half to far.py.

    listening ──"run"──► child running ──► its end, or "stop"
        └── no driver for LONELY_S ──► child ended ──► over
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import msgspec

from rockroll import home, rpc
from rockroll.errors import HostError
from rockroll.placement import usage
from rockroll.placement.on_ray import trees
from rockroll.release import VERSION

PULSE_S = 1.0
"""So often a host says that it is there, with what its child has logged since."""
LONELY_S = 8.0
"""Without a driver for so long, the child is ended: longer than a connection takes to be made again."""
_GRACE_S = 5.0
_LOG_PIECE = 1 << 18


class Versions(msgspec.Struct, frozen=True):
    """What must be the same on every node."""

    rockroll: str
    python: str
    torch: str


def versions() -> Versions:
    try:
        torch = metadata.version("torch").partition("+")[0]
    except metadata.PackageNotFoundError:
        torch = "none"
    return Versions(VERSION, f"{sys.version_info.major}.{sys.version_info.minor}", torch)


class Run(msgspec.Struct, frozen=True):
    """name: of the process. config: its JSON, whose path replaces CONFIG in args. env: beside this node's own, or,
    where whole, instead of it."""

    name: str
    module: str
    args: list[str]
    config: bytes
    env: dict[str, str]
    whole: bool


class Life(msgspec.Struct, frozen=True):
    log: bytes
    """What came after the offset that was asked for."""
    code: int | None
    """Of a child that has ended, with the rest of its log."""
    cpu_s: float = 0.0
    memory: int = 0
    """What it takes of its machine now (usage.py)."""


class Fetch(msgspec.Struct, frozen=True):
    source: str
    """Address of the machine that has it."""
    path: str
    name: str
    """What it is, for this run; "": kept for later runs too."""


CONFIG = "{config}"


class Host:
    """Made on the event loop that it serves on."""

    def __init__(self, ip: str, run: str, key: bytes) -> None:
        """ip: this node's address. run: names the run. key: the contents of its key file."""
        self.ip = ip
        cluster = home.made(home.home() / "cluster")
        _sweep(cluster)
        self.models, self.folder = cluster / "models", cluster / f"run-{run}"
        self._held = _lock(self.folder)
        self.key = self.folder / "rpc.key"
        _write_secret(self.key, key)
        calls = {
            "run": self._run,
            "life": self._life,
            "stop": self._stop,
            "fetch": self._fetch,
            "drop": self._drop,
            "there": self._there,
            "leave": self._leave,
        }
        types = {"run": Run, "life": int, "fetch": Fetch, "drop": str, **trees.TYPES}
        self._server = rpc.Server(
            f"tcp://{ip}:0", {**calls, **trees.handlers()}, types=types, on_disconnect=self._gone, key=self.key
        )
        self._ports = [_port(ip), _port(ip)]
        self._child: asyncio.subprocess.Process | None = None
        self._log = self.folder / "none.log"
        self._sources: dict[str, rpc.Client] = {}
        self._drivers: set[str] = set()
        self._lonely: asyncio.TimerHandle | None = None
        self.over = asyncio.Event()
        self.left = False
        """The driver has said that it needs this host no more."""

    async def start(self) -> None:
        await self._server.start()
        self._watch()

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def ports(self) -> tuple[int, int]:
        """Free ones of this node: for what the child serves, and for a rendezvous. Kept from others by sockets that are
        bound and do not listen, beside which the child's own may."""
        first, second = (sock.getsockname()[1] for sock in self._ports)
        return first, second

    async def close(self) -> None:
        """After this the child has ended, and nothing of the run is left but what other hosts of this node hold."""
        await self._clear()
        await self._server.close()
        for sock in self._ports:
            sock.close()
        if self._lonely is not None:
            self._lonely.cancel()

    async def _clear(self) -> None:
        if self._held.closed:
            return
        await self._stop(None, None)
        for client in self._sources.values():
            await client.close()
        self._held.close()
        _remove_if_free(self.folder)

    # ---- calls ----

    async def _run(self, body: Run, peer: rpc.Peer) -> int:
        self._driver(peer)
        if self._child is not None:
            raise HostError(f"this host runs a process already; {body.name} needs one of its own")
        self._log = self.folder / f"{body.name}.{os.getpid()}.log"
        file = self.folder / f"{body.name}.{os.getpid()}.json"
        file.write_bytes(body.config)
        own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # Ray's, of its CPUs
        interface = _interface(self.ip)
        env = {
            **(body.env if body.whole else own),
            **({} if body.whole else body.env),
            **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
        }
        if body.whole and "CUDA_VISIBLE_DEVICES" in os.environ:
            env["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
        with self._log.open("wb") as out:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", body.module, *(str(file) if arg == CONFIG else arg for arg in body.args)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
                cwd=self.folder if not body.whole else None,
                start_new_session=True,
            )
        return self._child.pid

    async def _life(self, offset: int, peer: rpc.Peer) -> AsyncIterator[Life]:
        """A sign of life every PULSE_S, and the last one at the child's end. offset: of the log, known already."""
        self._driver(peer)
        child = self._child
        assert child is not None, "life is asked for after run"
        ended = asyncio.ensure_future(child.wait())
        try:
            with self._log.open("rb") as log:
                log.seek(offset)
                while True:
                    over = ended.done()
                    piece = log.read(_LOG_PIECE)
                    last = over and len(piece) < _LOG_PIECE
                    taken = (0.0, 0) if over else await asyncio.to_thread(usage.of, child.pid)
                    yield Life(piece, child.returncode if last else None, *taken)
                    if last:
                        return
                    if len(piece) < _LOG_PIECE:
                        await asyncio.wait([ended], timeout=PULSE_S)
        finally:
            ended.cancel()

    async def _stop(self, _body: Any, _peer: Any) -> None:
        """SIGTERM, then SIGKILL for what ignores it."""
        child = self._child
        if child is None or child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(_GRACE_S):
                await child.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()

    async def _fetch(self, body: Fetch, _peer: rpc.Peer) -> str:
        source = self._sources.get(body.source)
        if source is None or source.closed is not None:
            source = self._sources[body.source] = await rpc.connect(body.source, self.key)
        if not body.name:
            return str(await trees.fetch(source, body.path, self.models))
        return str(await trees.fetch_latest(source, body.path, self.folder / body.name))

    async def _drop(self, body: str, _peer: rpc.Peer) -> None:
        if Path(body).is_relative_to(self.folder):
            await asyncio.to_thread(shutil.rmtree, body, ignore_errors=True)

    async def _leave(self, _body: Any, _peer: rpc.Peer) -> None:
        """The driver needs this host no more."""
        await self._clear()
        self.left = True
        self.over.set()

    async def _there(self, _body: Any, peer: rpc.Peer) -> None:
        self._driver(peer)

    # ---- the driver ----

    def _driver(self, peer: rpc.Peer) -> None:
        self._drivers.add(peer.id)
        self._watch()

    def _gone(self, peer: rpc.Peer) -> None:
        self._drivers.discard(peer.id)
        self._watch()

    def _watch(self) -> None:
        if self._lonely is not None:
            self._lonely.cancel()
            self._lonely = None
        if not self._drivers:
            patience = LONELY_S if self._child else 60.0
            self._lonely = asyncio.get_running_loop().call_later(patience, self.over.set)


def _port(ip: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ip, 0))
    return sock


def _interface(ip: str) -> str:
    """The network interface that has this address: where ranks of several nodes talk. "": none is found."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == ip for each in addresses):
            return name
    return ""


def _write_secret(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    draft.replace(path)


def _lock(folder: Path) -> TextIO:
    """The folder, made, and held by every host of a run on this node while it lives."""
    while True:
        folder.mkdir(exist_ok=True, mode=0o700)
        try:
            file = (folder / ".held").open("w")
        except FileNotFoundError:
            continue  # the last host of another run's folder swept it just now
        fcntl.flock(file, fcntl.LOCK_SH)
        if (folder / ".held").exists():
            return file
        file.close()


def _remove_if_free(folder: Path) -> None:
    try:
        with (folder / ".held").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # another host of the run is at work, or has removed it


def _sweep(cluster: Path) -> None:
    """Folders of runs whose hosts were killed."""
    for folder in cluster.glob("run-*"):
        if (folder / ".held").exists():
            _remove_if_free(folder)
