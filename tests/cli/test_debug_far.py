"""What `rockroll debug` promises for a box on another node: the same terminal, through the hub."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockroll.sync import Sandbox, SandboxConfig
from tests.cli.test_debug import PROMPT, WAIT_S, Terminal, at_prompt, gone, processes
from tests.placement.cluster import cluster


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[Sandbox]:
    """On a node whose home is not this process's: nothing of it is found here."""
    with cluster(tmp_path_factory.mktemp("far"), ["far"]) as (hub, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROCKROLL_HOME", str(tmp_path_factory.mktemp("here")))
        patch.setenv("ROCKROLL_CLUSTER", str(hub.file))
        with Sandbox(SandboxConfig(name="far-demo", memory="128m", pids=64)) as sandbox:
            yield sandbox


@pytest.fixture
def shell(box: Sandbox) -> Iterator[Terminal]:
    with at_prompt("far-demo") as terminal:
        yield terminal


def test_it_is_a_terminal_like_any_other_and_its_exit_code_comes_back(box: Sandbox, shell: Terminal) -> None:
    assert re.search(rb"/dev/pts/\d+", shell.run("tty"))
    assert b"30 100" in shell.run("stty size")
    shell.resize(50, 132)
    shell.type("\n")
    end = time.monotonic() + WAIT_S
    while b"50 132" not in shell.run("stty size"):
        assert time.monotonic() < end, "the window's size did not arrive"
    assert not shell.restored()
    shell.type("exit 9\n")
    assert shell.end() == 9
    assert shell.restored()
    assert box.refresh().state == "running"


def test_ctrl_c_ends_a_flood_and_not_the_shell_and_ctrl_d_leaves(box: Sandbox, shell: Terminal) -> None:
    assert shell.run("seq 1 50000").count(b"\n") >= 50000
    shell.type("yes\n")
    shell.until(rb"y\r\ny")
    shell.type("\x03")
    shell.until(rb"\^C")
    assert b"alive" in shell.run("echo alive")
    shell.until(PROMPT)
    shell.type("\x04")
    assert shell.end() == 0
    assert shell.restored()


def test_what_was_printed_last_is_shown_before_the_end(box: Sandbox, shell: Terminal) -> None:
    shell.type("stty -echo; exec seq 1 20000\n")
    assert shell.end() == 0
    assert shell.left.rstrip().endswith(b"20000")


def test_a_large_paste_arrives_whole(shell: Terminal) -> None:
    shell.type("stty -echo; cat >/tmp/pasted; echo pas''ted\n")
    time.sleep(0.3)
    for _ in range(400):
        shell.type("x" * 99 + "\n")
    shell.type("\x04")
    shell.until(rb"pasted")
    assert b"40000" in shell.run("stty echo; wc -c </tmp/pasted")


def test_a_closed_terminal_or_a_killed_worker_hangs_the_shell_up(box: Sandbox, shell: Terminal) -> None:
    shell.type("sleep 1111\n")
    while not processes(box, "sleep 1111"):
        time.sleep(0.02)
    shell.hang_up()
    assert gone(box, "sleep 1111") and gone(box, "bash -i")
    another = Terminal("far-demo")
    another.until(PROMPT)
    (worker,) = map(int, Path(f"/proc/{another.pid}/task/{another.pid}/children").read_text().split())
    os.kill(worker, signal.SIGKILL)
    assert another.end() == 128 + signal.SIGKILL
    assert another.restored()
    assert gone(box, "bash -i")
    another.close()
    assert box.refresh().state == "running"


def test_it_begins_as_a_session_is_and_one_that_there_is_not_is_named(box: Sandbox) -> None:
    box.arun("cd /usr/lib; x='a b'", session="build")
    terminal = Terminal("far-demo", "--session", "build")
    terminal.until(rb"\[build\] /usr/lib# $")
    assert b"a b" in terminal.run('echo "$x"')
    terminal.close()
    terminal = Terminal("far-demo", "--session", "nope")
    assert terminal.end() == 1
    assert b"no session 'nope'" in terminal.left and terminal.restored()
    terminal.close()


def test_through_a_server_it_is_refused_with_the_way_there_is(box: Sandbox) -> None:
    env = {key: value for key, value in os.environ.items() if key != "ROCKROLL_CLUSTER"}
    script = f"{sys.executable} -m rockroll debug far-demo"
    done = subprocess.run(
        ["script", "-qec", script, "/dev/null"],
        env={**env, "ROCKROLL_BASE_URL": "http://127.0.0.1:9", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "with --cluster FILE" in " ".join(done.stdout.split())
