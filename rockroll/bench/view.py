"""`rockroll view` of a run with very many episodes.

In: how many. Out: milliseconds until pages are there, and of the processor for them, from a run whose records were made
up: as long as the quick start's, written as a run writes them. Leaves what the pages show to view/.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rockroll.observe.index import NAME
from rockroll.observe.record import EpisodeLog

A_STEP, A_GROUP = 128, 8
TOKENS = 120
RUNS = 20
_RECIPE = "name: made_up\nsteps: {steps}\nmodel: tiny\ntask:\n  env: rockroll:shell\n"


async def run(episodes: int) -> dict[str, Any]:
    """About 3 KB of the temporary folder for each episode."""
    return await asyncio.to_thread(measure, episodes)


def measure(episodes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="rockroll-bench-view-") as folder:
        path = Path(folder) / "made_up"
        writing_s = make(path, episodes)
        steps = -(-episodes // A_STEP)
        written = sum(file.stat().st_size for file in (path / "episodes").glob("*.jsonl"))
        figures = {
            "episodes": float(episodes),
            "records_mb": written / 1e6,
            "written_and_indexed_ms_per_step": writing_s / steps * 1000,
        }
        figures |= _pages(path, steps)
        for file in (path / "episodes").glob(f"{NAME}*"):
            file.unlink()
        figures |= _anew(path, episodes)
    return {"figures": figures, "baselines": {"view_open_ms_at_most": 1000.0, "trajectory_ms_at_most": 100.0}}


def make(path: Path, episodes: int) -> float:
    """A run of so many episodes at `path`; the seconds that writing and indexing the records took."""
    path.mkdir(parents=True)
    steps = -(-episodes // A_STEP)
    (path / "recipe.yaml").write_text(_RECIPE.format(steps=steps))
    draw = random.Random(7)
    log, took = EpisodeLog(path), 0.0
    with (path / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            n = min(A_STEP, episodes - (step - 1) * A_STEP)
            records = [_record(draw, step, place) for place in range(n)]
            begun = time.perf_counter()
            log.write("train", step, records)
            took += time.perf_counter() - begun
            row = {"step": step, "reward/mean": sum(record["reward"] for record in records) / n}
            row |= {f"loss/made_up_{i}": draw.random() for i in range(40)}
            metrics.write(json.dumps(row) + "\n")
    return took


def _record(draw: random.Random, step: int, place: int) -> dict[str, Any]:
    mask = [i % 40 >= 25 for i in range(TOKENS)]
    turns = [{"number": i, "start": 40 * i + 25, "end": 40 * i + 40, "state": "0" * 16} for i in range(TOKENS // 40)]
    reward = float(draw.random() < 0.4)
    return {
        "id": f"train-{step * A_STEP // A_GROUP + place // A_GROUP}-{place % A_GROUP}-0-{step * A_STEP + place}",
        "task": "rockroll:shell",
        "seed": step * 1000 + place // A_GROUP,
        "group": step * A_STEP // A_GROUP + place // A_GROUP,
        "index": place % A_GROUP,
        "outcome": "ok" if draw.random() < 0.95 else "truncated",
        "cause": None,
        "reward": reward,
        "samples": [
            {
                "ids": [draw.randrange(5, 360) for _ in mask],
                "mask": mask,
                "logprobs": [-draw.random() if on else 0.0 for on in mask],
                "versions": [step if on else -1 for on in mask],
                "turns": turns,
            }
        ],
        "turns": len(turns),
        "duration_s": draw.random() * 3,
        "detail": "",
        "turn_rewards": [],
        "record": [{"prompt_tokens": turn["start"], "sampled": 15, "cached": 0} for turn in turns],
        "began_at": 1.8e9 + step,
        "sandbox": "",
        "node": "",
        "advantages": [[[turn["start"], turn["end"], reward - 0.5] for turn in turns]],
    }


def _pages(path: Path, steps: int) -> dict[str, float]:
    """Of a run that has its index, as a run that is training or has trained has."""
    begun = time.perf_counter()
    with _Viewer(path) as viewer:
        viewer.get("/")
        cold = (time.perf_counter() - begun) * 1000
        draw = random.Random(3)
        base = "/r/made_up"
        figures = {"command_to_first_page_ms": cold, "command_to_first_page_cpu_ms": viewer.cpu_s * 1000}
        for name, address in (
            ("view_open", lambda: "/"),
            ("episodes_page", lambda: f"{base}/episodes"),
            ("filtered_page", lambda: f"{base}/episodes?outcome=truncated&order=worst&text=train"),
            ("groups_page", lambda: f"{base}/groups?step={draw.randint(1, steps)}"),
            ("trajectory", lambda: f"{base}/e/train-{draw.randint(1, steps):06d}/0"),
        ):
            figures[f"{name}_ms"], figures[f"{name}_cpu_ms"] = viewer.visits(address)
        return figures


def _anew(path: Path, episodes: int) -> dict[str, float]:
    """Of a run without an index: its first page does not wait for it."""
    begun = time.perf_counter()
    with _Viewer(path) as viewer:
        viewer.get("/")
        first = time.perf_counter() - begun
        events = http.client.HTTPConnection("127.0.0.1", viewer.port, timeout=300)
        events.request("GET", "/events")
        told = events.getresponse()
        while f"{episodes:,} episodes" not in viewer.get("/r/made_up/episodes"):
            told.readline()  # every word of the server's is one more look
        return {
            "unindexed_command_to_first_page_ms": first * 1000,
            "index_anew_s": time.perf_counter() - begun,
            "index_anew_cpu_s": viewer.cpu_s,
        }


class _Viewer:
    """`rockroll view` as a process of its own."""

    def __init__(self, path: Path) -> None:
        self._argv = [sys.executable, "-m", "rockroll", "view", str(path), "--port", "0", "--no-token"]

    def __enter__(self) -> _Viewer:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline().split("/")[2].rpartition(":")[2])
        self._link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._process.terminate()
        self._process.wait(30)

    def get(self, address: str) -> str:
        self._link.request("GET", address)
        answer = self._link.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, f"{address}: {answer.status}"
        return text

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor that it has taken: what a busy machine does not change."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def visits(self, address: Callable[[], str]) -> tuple[float, float]:
        """(median milliseconds of some visits, milliseconds of the processor of one), after one that is not counted."""
        self.get(address())
        took, before = [], self.cpu_s
        for _ in range(RUNS):
            begun = time.perf_counter()
            self.get(address())
            took.append((time.perf_counter() - begun) * 1000)
        return statistics.median(took), (self.cpu_s - before) / RUNS * 1000
