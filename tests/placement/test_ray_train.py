"""train, eval, rollout --ray: the same recipe on a cluster of real raylets; what each loss costs, and that --resume
goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.placement.cluster import Pace
from tests.placement.conftest import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NOTICED_S, CLEARED_S = 5.0, 5.0
"""From a loss to its being known, and from then to the end of the driver's process, on an idle machine."""
REAL_HOME = Path(os.environ.get("ROCKROLL_HOME") or Path.home() / ".rockroll")
SMALL = [
    *("--set", "steps=400", "--set", "eval.episodes=4", "--set", "checkpoint.every=1", "--set", "train.threads=1"),
    *("--set", "rollout.groups=2", "--set", "rollout.episodes=4", "--set", "rollout.concurrency=4"),
    *("--set", "train.worst_case_step=false", "--set", f"model={REAL_HOME / 'models' / 'tiny'}"),
]


@pytest.fixture
def nodes(make_nodes: Callable[[], Nodes]) -> Iterator[Nodes]:
    """A cluster of the test's own: it is broken by it. The head, where this process is, has no room for the run."""
    made = make_nodes()
    made.add(0)
    yield made
    made.close()


class Training:
    """`rockroll train` on the cluster, or another command that runs a recipe, a process of its own."""

    def __init__(
        self,
        nodes: Nodes | None,
        run_dir: Path,
        *more: str,
        recipe: str = "recipes/frozen_lake.yaml",
        command: str = "train",
    ) -> None:
        self.run_dir = run_dir
        argv = [command, recipe, *(() if command == "eval" else ("--run-dir", str(run_dir))), *SMALL, *more]
        argv += ["--ray", nodes.address] if nodes else []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rockroll", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "COLUMNS": "300"},
        )

    def rows(self) -> list[dict[str, float]]:
        file = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def until_step(self, step: int) -> None:
        while not any(row["step"] >= step for row in self.rows()):
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)

    def said(self, timeout: float = 120) -> str:
        return self.process.communicate(timeout=timeout)[0]

    def pid(self, name: str) -> int:
        """Of a child of the run, found by its configuration file."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().decode().split("\0")
                except OSError:
                    continue
                if any(re.search(rf"/cluster/run-{self.process.pid}-\w+/{name}\.\d+\.json", word) for word in line):
                    return int(entry.name)
        raise AssertionError(f"no process {name}")


def test_a_lost_engine_node_costs_nothing_but_what_was_on_it(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    victim = nodes.add(1)
    run = Training(nodes, tmp_path / "run", "--set", "engine.replicas=2", "--set", "engine.restarts=0")
    run.until_step(1)
    done = run.rows()[-1]["step"]
    nodes.kill(victim)
    run.until_step(int(done) + 3)
    assert run.rows()[-1]["engine/replicas"] == 1
    run.process.send_signal(signal.SIGINT)
    run.said()


def test_a_lost_trainer_ends_the_run_in_a_sentence_and_it_goes_on_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    victim = nodes.add(2)
    run = Training(nodes, tmp_path / "run")
    run.until_step(2)
    begun = time.monotonic()
    with Pace() as pace:
        nodes.kill(victim)
        said = run.said()
    took = time.monotonic() - begun
    print(f"ended {took:.1f} s after its node was killed")
    assert took < NOTICED_S + CLEARED_S * pace.factor, said
    assert run.process.returncode == 1 and re.search(r"node [\d.]+, where \S+ ran, is lost", said), said
    assert "--resume --ray" in said
    nodes.add(1)
    nodes.add(1)
    again = Training(nodes, tmp_path / "run", "--resume", "--set", "steps=5")
    said = again.said(600)
    assert again.process.returncode == 0, said
    assert [row["step"] for row in again.rows()] == list(range(6))


def test_a_lost_head_is_one_sentence(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    run = Training(nodes, tmp_path / "run")
    run.until_step(1)
    begun = time.monotonic()
    with Pace() as pace:
        nodes.nodes[0].kill_gcs_server()
        said = run.said()
    took = time.monotonic() - begun
    print(f"ended {took:.1f} s after the head was killed")
    assert took < NOTICED_S + CLEARED_S * pace.factor, said
    assert run.process.returncode == 1 and "Ray's head" in said and "--resume" in said, said
    assert "Traceback" not in said and "core_worker" not in said


def test_a_driver_that_is_killed_leaves_no_process_of_the_run(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    run = Training(nodes, tmp_path / "run")
    run.until_step(1)
    pids = [run.pid(name) for name in ("trainer-0", "engine-0")]
    run.process.kill()
    begun = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() - begun < 30, "a process outlived its driver"
        time.sleep(0.1)
    run.said()


def test_two_ranks_on_two_nodes_learn_as_one_trainer_and_save_one_checkpoint(nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(3):
        nodes.add(1)
    more = ["--set", "train.ranks=2", "--set", "train.zero_stage=2", "--set", "steps=2"]
    run = Training(nodes, tmp_path / "run", *more)
    said = run.said(600)
    assert run.process.returncode == 0, said
    whole = {file.name for file in (tmp_path / "run" / "checkpoints" / "step_2").iterdir()}
    assert {"optimizer-0.safetensors", "optimizer-1.safetensors", "trainer.json", "model"} <= whole
    here = Training(nodes, tmp_path / "run", "--resume", "--set", "steps=3", "--set", "train.ranks=1")
    said = here.said(600)
    assert here.process.returncode == 0, said


PROCESSES = ("engine-0", "trainer-0")


def _node_of(metrics: str, series: str) -> str:
    """The label `node` of the one line that has the series."""
    line = next(line for line in metrics.splitlines() if re.match(series, line))
    found = re.search('node="([^"]+)"', line)
    assert found, line
    return found[1]


def boxes(node: Any) -> int:
    """How many sandboxes there have been on a node."""
    with sqlite3.connect(node.home / "node" / "registry.sqlite") as registry:
        return registry.execute("SELECT count(*) FROM gone").fetchone()[0]


@pytest.fixture
def three(nodes: Nodes, sandbox_image: str) -> Iterator[Nodes]:
    """Each of which has sandboxes; the head has no room for anything else of a run."""
    nodes.add(1)
    nodes.add(1)
    yield nodes
    nodes.end_sandboxes()


def test_the_quick_start_runs_on_three_nodes_with_sandboxes_on_each_and_so_do_eval_and_rollout(
    three: Nodes, tmp_path: Path
) -> None:
    recipe = Path("recipes/quickstart.yaml")
    before = recipe.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = "{}:{}".format(*free.getsockname())
    more = ["--set", "steps=4", "--set", f"metrics.prometheus={place}"]
    run = Training(three, tmp_path / "run", *more, recipe=str(recipe))
    run.until_step(0)
    scraped = urllib.request.urlopen(f"http://{place}/metrics").read().decode()
    said = run.said(900)
    assert run.process.returncode == 0, said
    assert [row["step"] for row in run.rows()] == [0, 1, 2, 3, 4]
    node = {name: _node_of(scraped, rf'rockroll_process_memory_bytes.*process="{name}"') for name in PROCESSES}
    assert node["engine-0"] == _node_of(scraped, 'rockroll_engine_steps_total.*engine="engine-0"')
    boxed = set(re.findall(r'rockroll_admission_limit{node="([^"]+)"', scraped))
    assert len(boxed) == 3 and set(node.values()) < boxed, scraped
    trained = [boxes(node) for node in three.nodes]
    assert all(trained), f"sandboxes by node: {trained}; {said}"

    evaluation = Training(three, tmp_path, "--model", str(run.run_dir), "--json", recipe=str(recipe), command="eval")
    said = evaluation.said(300)
    assert evaluation.process.returncode == 0, said
    found = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert found["episodes"] == 4
    evaluated = [boxes(node) for node in three.nodes]
    assert all(now > was for now, was in zip(evaluated, trained, strict=True)), f"sandboxes by node: {evaluated}"

    sampled = Training(three, tmp_path / "sampled", "--steps", "1", recipe=str(recipe), command="rollout")
    said = sampled.said(300)
    assert sampled.process.returncode == 0, said
    assert [row["step"] for row in sampled.rows()] == [1]
    assert all(boxes(node) > was for node, was in zip(three.nodes, evaluated, strict=True))
    assert recipe.read_bytes() == before


def test_an_engine_that_cannot_start_on_another_node_is_told_of_with_what_it_said(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add(2)
    model = tmp_path / "model"
    shutil.copytree(REAL_HOME / "models" / "tiny", model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    run = Training(nodes, tmp_path, "--model", str(model), command="eval")
    said = run.said(300)
    assert run.process.returncode == 1 and re.search(
        r"the engine-0 process on node [\d.]+ ended with exit code 1", said
    )
    assert "SafetensorError" in said or "safetensors" in said, said
    assert "ActorDiedError" not in said and "Traceback (most recent call last)" not in said


PAIRS, FROM_STEP, STEPS = 5, 4, 14


def test_one_node_is_as_fast_with_ray_as_without(make_nodes: Callable[[], Nodes], tmp_path: Path) -> None:
    """Trained tokens a second in steps FROM_STEP to STEPS, run after run in pairs, each pair the other way round: what
    else the machine does falls on both. The policy stays as it is: one that has learned more plays shorter episodes.
    The median of the pairs' ratios is the figure, for a quiet machine."""
    nodes = make_nodes()
    nodes.add(4)
    settings = [f"steps={STEPS}", "checkpoint.every=0", "rollout.groups=8", "eval.episodes=1", "train.lr=1e-12"]
    more = [word for each in settings for word in ("--set", each)]
    ratios: list[float] = []
    for pair in range(PAIRS):
        rate: dict[bool, float] = {}
        for ray in (False, True) if pair % 2 else (True, False):
            run = Training(nodes if ray else None, tmp_path / f"{pair}-{ray}", *more)
            said = run.said(900)
            assert run.process.returncode == 0, said
            rows = [row for row in run.rows() if FROM_STEP <= row["step"] < STEPS]
            rate[ray] = sum(row["tokens/trained"] for row in rows) / sum(row["time/step_s"] for row in rows)
        ratios.append(rate[True] / rate[False])
        print(f"pair {pair}: {rate[False]:.0f} tokens/s without, {rate[True]:.0f} with --ray")
    nodes.close()
    print(f"throughput with --ray: {statistics.median(ratios):.3f} of that without; {ratios}")
    assert statistics.median(ratios) >= 0.97
