"""Runs of the real command, on real parts, in a home of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rockroll import home

REAL_HOME = os.environ.get("ROCKROLL_HOME")
SMALL = [
    *("--set", "rollout.groups=3", "--set", "rollout.episodes=4", "--set", "rollout.concurrency=6"),
    *("--set", "eval.episodes=12", "--set", "checkpoint.every=1", "--set", "train.threads=1"),
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model that set-up made, or one made now."""
    made = Path(REAL_HOME or Path.home() / ".rockroll") / "models" / "tiny"
    if not (made / "model.safetensors").exists():
        made = tmp_path_factory.mktemp("models") / "tiny"
        subprocess.run([sys.executable, "-m", "rockroll.tiny", "--out", str(made)], check=True)
    return made


def pids_of(home: Path, *modules: str) -> list[int]:
    """The processes that run one of these modules for that home."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if f"ROCKROLL_HOME={home}".encode() in environ and any(module.encode() in line for module in modules):
            found.append(int(entry.name))
    return found


@dataclass
class Command:
    """The `rockroll` command with a home and a model of the test's own."""

    home: Path
    model: Path

    def pids(self, *modules: str) -> list[int]:
        return pids_of(self.home, *modules)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rockroll", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ROCKROLL_HOME": str(self.home), "COLUMNS": "200"},
        )

    def __call__(self, *args: str, timeout: float = 110) -> subprocess.CompletedProcess[str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def train(self, run_dir: Path, *args: str) -> list[str]:
        """The arguments of a small run of the quick start."""
        recipe = ["train", "recipes/quickstart.yaml", "--run-dir", str(run_dir), "--set", f"model={self.model}"]
        return [*recipe, *SMALL, *args]


@pytest.fixture
def rockroll(node_home: Path, tiny_model: Path) -> Iterator[Command]:
    command = Command(node_home, tiny_model)
    yield command
    command("sandbox", "down", "--all")


@pytest.fixture
def leftovers(node_home: Path) -> Callable[[], dict[str, list[str]]]:
    """What a run left behind in this home: containers, processes, sockets and FIFOs."""

    def look() -> dict[str, list[str]]:
        from rockroll.sandbox.container.podman import HOME_LABEL, PodmanService

        async def containers() -> list[str]:
            async with PodmanService() as podman:
                return [box["Id"] for box in await podman.list({HOME_LABEL: home.home_id()})]

        runs = [str(path) for path in home.runtime_dir().glob("run-*")]
        pipes = [str(path) for path in home.runtime_dir().rglob("*") if path.is_fifo()]
        alive = pids_of(node_home, "rockroll.engine.server", "rockroll.train.server")
        return {
            "containers": asyncio.run(containers()),
            "processes": [str(pid) for pid in alive],
            "sockets": runs,
            "fifos": pipes,
        }

    return look


NOTHING: dict[str, list[str]] = {"containers": [], "processes": [], "sockets": [], "fifos": []}


@pytest.fixture
def gone_within(leftovers: Callable[[], dict[str, list[str]]]) -> Callable[[float], None]:
    """Fails unless nothing of the run is left within so many seconds of now."""

    def check(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := leftovers()) != NOTHING:
            assert time.monotonic() < deadline, f"{seconds} s later there is still {left}"

    return check


def rows(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
