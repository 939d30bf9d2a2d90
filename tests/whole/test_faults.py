"""A run that loses a part ends by itself, says which part, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rockroll.placement.local import remove_left_behind
from tests.whole.conftest import Command

NOT_REPLACED = ("--set", "engine.restarts=0")


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Reads the run's lines until that step is done: the next one is under way then."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step:>4}"):
            return
    raise AssertionError(f"the run ended before step {step}: {process.communicate()[1]}")


@pytest.fixture
def running(rockroll: Command, tmp_path: Path):
    """A run that has done its first step."""
    process = rockroll.start(
        *rockroll.train(tmp_path / "r", "--set", "steps=1000", "--set", "eval.episodes=0", *NOT_REPLACED)
    )
    wait_for_step(process, 1)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("module", "name"), [("rockroll.engine.server", "engine-0"), ("rockroll.train.server", "trainer-0")]
)
def test_a_killed_process_is_named(
    running: subprocess.Popen[str], rockroll: Command, module: str, name: str, gone_within: Callable[[float], None]
) -> None:
    (pid,) = rockroll.pids(module)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert f"rockroll: the {name} process was killed by SIGKILL" in err and "Traceback" not in err
    gone_within(10 - (time.monotonic() - killed))


@pytest.mark.slow
def test_a_killed_engine_is_replaced_and_the_run_goes_on(rockroll: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = rockroll.start(*rockroll.train(run_dir, "--set", "steps=4", "--set", "eval.episodes=0"))
    wait_for_step(process, 1)
    (pid,) = rockroll.pids("rockroll.engine.server")
    os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err + out
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["engine/restarts"] == rows[-1]["engine/replicas"] == 1
    assert all(row["canary/max_abs_dlogp"] < 1e-3 for row in rows)


def test_a_killed_node_is_named_and_its_boxes_are_removed(
    running: subprocess.Popen[str], rockroll: Command, gone_within: Callable[[float], None]
) -> None:
    for pid in rockroll.pids("rockroll.placement.node"):
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "rockroll: the sandbox node died" in err and "Traceback" not in err
    gone_within(10 - (time.monotonic() - killed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything_and_says_how_to_continue(
    running: subprocess.Popen[str], number: signal.Signals, gone_within: Callable[[float], None]
) -> None:
    os.kill(running.pid, number)
    sent = time.monotonic()
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "stopped; continue with: rockroll train" in out and "--resume" in out and "Traceback" not in err
    gone_within(10 - (time.monotonic() - sent))


def test_ctrl_c_while_it_starts(rockroll: Command, tmp_path: Path, gone_within: Callable[[float], None]) -> None:
    process = rockroll.start(*rockroll.train(tmp_path / "r"))
    assert process.stdout is not None and process.stdout.readline().startswith("run directory")
    os.kill(process.pid, signal.SIGINT)
    sent = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    gone_within(10 - (time.monotonic() - sent))


def test_a_killed_run_leaves_nothing_either(
    running: subprocess.Popen[str], gone_within: Callable[[float], None]
) -> None:
    """SIGKILL of the run itself: its children die with it, and the node removes the boxes of the broken connection."""
    running.kill()
    running.communicate()
    remove_left_behind()  # its socket folder goes when the next run starts; everything else goes by itself
    gone_within(10)


def test_a_box_that_is_killed_costs_its_episode_and_is_replaced(rockroll: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    process = rockroll.start(*rockroll.train(run_dir, "--set", "steps=4", "--set", "eval.episodes=0"))
    wait_for_step(process, 1)
    for info in json.loads(rockroll("sandbox", "ls", "--json").stdout)[:2]:
        rockroll("sandbox", "down", info["id"])
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err + out
    counted = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(row["episodes/ok"] + row["episodes/truncated"] == 12 for row in counted[1:])


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (["train", "recipes/none.yaml"], "no recipe can be read there", 2),
        (["train", "recipes/quickstart.yaml", "--set", "modl=x"], "did you mean 'model'?", 2),
        (["train", "recipes/quickstart.yaml", "--set", "model=/nowhere"], "holds no model", 2),
        (["eval", "recipes/quickstart.yaml", "--model", "/etc"], "holds no model", 2),
        (["train", "recipes/quickstart.yaml", "--resume"], "name that directory", 2),
        (["plan", "recipes/quickstart.yaml", "--set", "sandbox.memory=64k"], "try memory: 64m", 2),
        (["sandbox", "exec", "nothing", "--", "true"], "nothing", 1),
        (["nonsense"], "No such command", 2),
    ],
)
def test_wrong_use_is_one_line_with_the_cure(rockroll: Command, args: list[str], said: str, code: int) -> None:
    done = rockroll(*args)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
