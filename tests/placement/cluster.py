"""A cluster on one machine for tests: a hub, and node processes with homes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import allow_unenforced


class Host:
    """One machine's worth: a home, and how a program is run there (`prefix`: in which network namespace)."""

    def __init__(self, path: Path, prefix: Sequence[str] = (), *, own_store: bool = False) -> None:
        """own_store: its images are not those of the other hosts."""
        self.path, self.prefix, self.own_store = path, list(prefix), own_store
        path.mkdir(parents=True, exist_ok=True)
        allow_unenforced(path)

    @property
    def environment(self) -> dict[str, str]:
        env = {**os.environ, "ROCKROLL_HOME": str(self.path)}
        for name in ("ROCKROLL_CLUSTER", "ROCKROLL_NODE_NAME", "ROCKROLL_BASE_URL"):
            env.pop(name, None)
        if self.own_store:
            env["CONTAINERS_STORAGE_CONF"] = str(self._storage())
        return env

    def _storage(self) -> Path:
        conf = self.path / "storage.conf"
        places = f'graphroot = "{self.path}/store"\nrunroot = "{self.path}/run-store"\n'
        conf.write_text(f'[storage]\ndriver = "overlay"\n{places}')
        return conf

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *argv],
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.prefix, *argv], env=self.environment)

    # -- its node

    def join(self, file: Path, name: str) -> None:
        code = f"import asyncio; from pathlib import Path; from rockroll.placement.member import join; \
asyncio.run(join(Path({str(file)!r}), {name!r}))"
        done = self.run(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr

    def guard(self) -> dict[str, list[int]]:
        return json.loads((self.path / "node" / "guard.json").read_text())

    @property
    def pid(self) -> int:
        return self.guard()["node"][0]

    def end(self) -> None:
        """The node and its warden are gone, and its folder of sockets."""
        if (self.path / "node" / "guard.json").exists():
            with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
                warden = int((self.path / "node" / "warden.lock").read_text().split()[0])
                if "node" in self.guard():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGCONT)
                        end(self.pid)
                end(warden, None)
        code = "from rockroll import home; print(home.runtime_dir())"
        place = self.run(sys.executable, "-c", code).stdout.strip()
        shutil.rmtree(place, ignore_errors=True)
        if self.own_store and (self.path / "store").exists():
            mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
            for point in reversed([each for each in mounted if each.startswith(f"{self.path}/")]):
                subprocess.run(["umount", point], check=True)
            shutil.rmtree(self.path / "store")


def end(pid: int, number: signal.Signals | None = signal.SIGTERM) -> None:
    """Waits until a process that need not be our child is gone, told to end or not."""
    pidfd = os.pidfd_open(pid)
    try:
        if number is not None:
            signal.pidfd_send_signal(pidfd, number)
        gone, _, _ = select.select([pidfd], [], [], 40)
        assert gone, f"process {pid} did not end within 40 s"
    finally:
        os.close(pidfd)


class Hub:
    """The hub's process."""

    def __init__(self, file: Path, address: str = "tcp://127.0.0.1:0", prefix: Sequence[str] = ()) -> None:
        self.file, self.address, self.prefix = file, address, list(prefix)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        ready, told = os.pipe()
        argv = [sys.executable, "-m", "rockroll.placement.hub", "--address", self.address, "--file", str(self.file)]
        self.process = subprocess.Popen([*self.prefix, *argv, "--ready-fd", str(told), *options], pass_fds=[told])
        os.close(told)
        try:
            assert os.read(ready, 16) == b"ready\n", "the hub did not start"
        finally:
            os.close(ready)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """It is gone; one that was never there or has ended is, too."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)


@contextlib.contextmanager
def cluster(
    folder: Path, names: Sequence[str], own_stores: Sequence[str] = ()
) -> Iterator[tuple[Hub, dict[str, Host]]]:
    """A hub and nodes of these names, all on this machine's loopback. own_stores: those with images of their own."""
    hub = Hub(folder / "cluster.json")
    hub.start()
    hosts = {name: Host(folder / name, own_store=name in own_stores) for name in names}
    try:
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(lambda name: hosts[name].join(hub.file, name), names))
        yield hub, hosts
    finally:
        try:
            with ThreadPoolExecutor() as side_by_side:
                list(side_by_side.map(Host.end, hosts.values()))
        finally:
            hub.stop()


class Pace:
    """How many times slower than an idle machine this one is while the block runs: what a bound of seconds is
    multiplied with, so that it holds for what is tested, whatever else the machine does."""

    def __init__(self) -> None:
        self._wall = self._busy = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def _measure(self) -> None:
        while not self._over.wait(0.2):
            wall, busy = time.monotonic(), time.thread_time()
            while time.thread_time() - busy < 0.01:
                pass
            self._wall += time.monotonic() - wall
            self._busy += time.thread_time() - busy

    @property
    def factor(self) -> float:
        return max(1.0, self._wall / self._busy) if self._busy else 1.0

    def __enter__(self) -> Pace:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def until(what: Callable[[], bool], seconds: float = 20.0) -> float:
    """Waits for what another process shows in no other way; how long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it did not come about in time"
        time.sleep(0.05)
    return time.monotonic() - began
