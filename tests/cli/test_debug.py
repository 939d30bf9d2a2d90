"""What `rockroll debug` promises on a real terminal: a shell like any other, and nothing in the box disturbed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockroll.sync import Sandbox, SandboxConfig

ROCKROLL = [sys.executable, "-m", "rockroll"]
PROMPT = rb"# $"
WAIT_S = 20

pytestmark = pytest.mark.usefixtures("node_home")


class Terminal:
    """A program on a terminal of its own, driven as a person does."""

    def __init__(self, *arguments: str, program: list[str] | None = None) -> None:
        """arguments: of `rockroll debug`, unless another program is named."""
        argv = program or [*ROCKROLL, "debug", *arguments]
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            os.execvpe(argv[0], argv, {**os.environ, "TERM": "vt100"})
        self._seen = b""
        self.before = termios.tcgetattr(self._fd)
        self._code: int | None = None

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def until(self, pattern: bytes) -> bytes:
        """Everything up to and with the pattern, which is taken off what is read next."""
        end = time.monotonic() + WAIT_S
        while not (found := re.search(pattern, self._seen, re.MULTILINE)):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{pattern!r} did not come within {WAIT_S} s; there is {self._seen[-2000:]!r}"
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                data = b""
            assert data, f"the terminal was closed before {pattern!r}; there is {self._seen[-2000:]!r}"
            self._seen += data
        text, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return text

    def run(self, line: str) -> bytes:
        """What a line typed at the prompt prints, up to a mark that it ends with."""
        self.type(f"{line}; echo do''ne\n")
        return self.until(rb"(?:^|\r)done\r?\n")  # bash ends a line of its own with a bare \r

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def restored(self) -> bool:
        return termios.tcgetattr(self._fd) == self.before

    def end(self) -> int:
        """Its exit code, negative for a signal, when it has ended. Reads on meanwhile: a full terminal holds it up."""
        end = time.monotonic() + WAIT_S
        while self._code is None:
            assert time.monotonic() < end, f"it did not end; there is {self._seen[-2000:]!r}"
            if select.select([self._fd], [], [], 0.02)[0]:
                with contextlib.suppress(OSError):
                    self._seen += os.read(self._fd, 1 << 16)
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    @property
    def left(self) -> bytes:
        """What was read and not asked for."""
        return self._seen

    def hang_up(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        if self._code is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def box(node_home: Path) -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(name="demo", memory="128m", pids=64)) as sandbox:
        yield sandbox


@contextlib.contextmanager
def at_prompt(name: str) -> Iterator[Terminal]:
    """A debug shell at its first prompt."""
    terminal = Terminal(name)
    try:
        terminal.until(PROMPT)
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def shell(box: Sandbox) -> Iterator[Terminal]:
    with at_prompt("demo") as terminal:
        yield terminal


def processes(box: Sandbox, word: str) -> list[str]:
    return [each.command for each in box.processes() if word in each.command]


def gone(box: Sandbox, word: str) -> bool:
    end = time.monotonic() + WAIT_S
    while processes(box, word) and time.monotonic() < end:
        time.sleep(0.02)
    return not processes(box, word)


def worker(terminal: Terminal) -> int:
    """The child that does the work for the process that the user started."""
    (pid,) = map(int, Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children").read_text().split())
    return pid


# ---- a terminal like any other ------------------------------------------------------------------------------------


def test_it_is_a_terminal_of_the_boxs_own_with_the_boxs_variables(shell: Terminal) -> None:
    assert re.search(rb"/dev/pts/\d+", shell.run("tty"))
    assert b"vt100 http://127.0.0.1:41414/v1" in shell.run("echo $TERM $OPENAI_BASE_URL")
    assert b"ok" in shell.run("echo ok >/dev/tty")


def test_the_shells_exit_code_is_the_commands_own_and_the_terminal_is_restored(shell: Terminal) -> None:
    assert not shell.restored()
    shell.type("exit 9\n")
    assert shell.end() == 9
    assert shell.restored()


def test_ctrl_d_leaves_and_the_sandbox_goes_on(box: Sandbox, shell: Terminal) -> None:
    shell.type("\x04")
    assert shell.end() == 0
    assert shell.restored()
    assert box.refresh().state == "running"


def test_ctrl_c_interrupts_what_runs_and_not_the_shell(shell: Terminal) -> None:
    shell.type("sleep 1000; echo $?-$$\n")
    shell.until(rb"\n")
    time.sleep(0.2)
    shell.type("\x03")
    shell.until(PROMPT)
    assert b"130" in shell.run("echo $?")


def test_ctrl_z_bg_fg_and_jobs_work(shell: Terminal) -> None:
    shell.type("sleep 1234\n")
    shell.until(rb"\n")
    time.sleep(0.2)
    shell.type("\x1a")
    shell.until(rb"Stopped")
    assert b"Running" in shell.run("bg; jobs")
    shell.type("fg\n")
    shell.until(rb"sleep 1234")
    time.sleep(0.2)
    shell.type("\x03")
    shell.until(PROMPT)
    assert b"1234" not in shell.run("jobs")


def test_the_window_has_the_size_of_the_users_and_follows_it(shell: Terminal) -> None:
    assert b"30 100" in shell.run("stty size")
    shell.type("trap 'stty size; echo chan''ged' WINCH\n")
    shell.until(PROMPT)
    shell.resize(50, 132)
    assert b"50 132" in shell.run("sleep 0.1; stty size")


def test_a_flood_of_output_comes_whole_and_can_be_stopped(shell: Terminal) -> None:
    assert shell.run("seq 1 50000").count(b"\n") >= 50000
    shell.type("yes\n")
    shell.until(rb"y\r\ny")
    shell.type("\x03")
    shell.until(rb"\^C")
    assert b"alive" in shell.run("echo alive")


def test_a_large_paste_arrives_whole(shell: Terminal) -> None:
    shell.type("stty -echo; cat >/tmp/pasted\n")
    time.sleep(0.3)
    for _ in range(400):
        shell.type("x" * 99 + "\n")
    shell.type("\x04")
    assert b"40000" in shell.run("stty echo; wc -c </tmp/pasted")


# ---- it ends, however -----------------------------------------------------------------------------------------------


def test_a_closed_terminal_hangs_the_shell_up_and_leaves_the_sandbox_running(box: Sandbox, shell: Terminal) -> None:
    box.arun("sleep 4321 &")
    shell.type("sleep 1111\n")
    while not processes(box, "sleep 1111"):
        time.sleep(0.02)
    shell.hang_up()
    assert gone(box, "sleep 1111") and gone(box, "bash -i")
    assert processes(box, "sleep 4321")
    assert box.refresh().state == "running"
    box.arun("kill %1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_restored(box: Sandbox, shell: Terminal, number: int) -> None:
    os.kill(shell.pid, number)
    assert shell.end() == 130
    assert shell.restored()
    assert gone(box, "bash -i")


def test_the_terminal_is_restored_even_after_sigkill_of_the_worker(box: Sandbox, shell: Terminal) -> None:
    os.kill(worker(shell), signal.SIGKILL)
    assert shell.end() == 128 + signal.SIGKILL
    assert shell.restored()
    assert gone(box, "bash -i")


def test_the_worker_restores_the_terminal_when_its_guard_is_killed(box: Sandbox, shell: Terminal) -> None:
    os.kill(shell.pid, signal.SIGKILL)
    shell.end()
    end = time.monotonic() + WAIT_S
    while not shell.restored() and time.monotonic() < end:
        time.sleep(0.02)
    assert shell.restored()
    assert gone(box, "bash -i")


def test_the_users_own_shell_reads_on_after_it(box: Sandbox) -> None:
    after = "import os; print('blocking', os.get_blocking(0), os.get_blocking(1))"
    script = f'{" ".join(ROCKROLL)} debug demo; {sys.executable} -c "{after}"'
    terminal = Terminal(program=["sh", "-c", script])
    terminal.until(PROMPT)
    terminal.type("exit\n")
    terminal.until(rb"blocking True True")
    terminal.close()


def test_a_recycled_box_ends_it_with_a_message(box: Sandbox, shell: Terminal) -> None:
    assert shell.run("touch /srv/x")
    assert box.recycle().ok
    assert shell.end() == 128 + signal.SIGKILL
    assert b"was recycled, and this shell ended with it" in shell.left
    assert shell.restored()


def test_it_leaves_no_trace(box: Sandbox, shell: Terminal) -> None:
    shell.run("echo remembered")
    shell.type("exit\n")
    shell.end()
    assert box.execute(["sh", "-c", "(ls /root/.bash_history; ls -A /dev/rr) | grep -v '^[0-9]*$'"]).stdout == b""


# ---- beside sessions ------------------------------------------------------------------------------------------------


def test_a_commands_timeout_does_not_touch_it(box: Sandbox, shell: Terminal) -> None:
    shell.run("sleep 2222 & true")
    assert box.arun("sleep 3333 & sleep 3333", timeout=0.3).outcome == "timeout"
    box.close_session()
    assert processes(box, "sleep 2222") and not processes(box, "sleep 3333")
    assert b"still" in shell.run("echo still")
    assert all(each.session is None for each in box.processes() if "sleep 2222" in each.command)


def test_with_a_session_it_begins_as_that_one_is_and_does_not_disturb_it(box: Sandbox) -> None:
    box.arun(
        "cd /usr/lib; x='a b'; declare -A m=([k]=v); f() { echo \"f:$1\"; }; alias hi='echo hello'; shopt -s extglob;"
        " set -u; trap 'echo trapped >>/tmp/trap' EXIT DEBUG; export SECRET=1",
        session="build",
    )
    box.execute(["rm", "-f", "/tmp/trap"])
    shell = Terminal("demo", "--session", "build")
    try:
        shell.until(rb"a copy of session build as it was after its last command")
        shell.until(rb"\[build\] /usr/lib# $")
        assert b"a b v f:1" in shell.run('echo "$x ${m[k]} $(f 1)"')
        assert b"hello" in shell.run("hi")
        assert b"extglob" in shell.run("shopt -s")
        assert b"unbound variable" in shell.run("echo $nothing\necho")
        assert b"vt100" in shell.run("echo $TERM")
        shell.run("x=changed; cd /; unset -f f; set +u")
        shell.type("exit\n")
        shell.end()
    finally:
        shell.close()
    assert box.execute(["cat", "/tmp/trap"]).exit_code == 1, "the session's traps are not this shell's"
    seen = box.arun("trap - DEBUG; echo $x $PWD; f 2", session="build")
    assert seen.stdout == b"a b /usr/lib\nf:2\n"


def test_a_session_that_is_yet_to_come_back_is_found_with_what_it_knew(node_home: Path) -> None:
    with Sandbox(SandboxConfig(name="back", memory="64m")) as sandbox:
        sandbox.arun("cd /usr/lib; x=known", session="build")
        sandbox.stop()
        sandbox.restore()
        shell = Terminal("back", "--session", "build")
        try:
            shell.until(rb"\[build\] /usr/lib# $")
            assert b"known" in shell.run("echo $x")
        finally:
            shell.close()
        assert sandbox.arun("echo $x $PWD", session="build").stdout == b"known /usr/lib\n"


def test_with_a_busy_session_it_says_so_and_errexit_does_not_close_it(box: Sandbox) -> None:
    box.arun("set -e; y=1", session="busy")
    running = subprocess.Popen([*ROCKROLL, "sandbox", "exec", "demo", "--session", "busy", "--", "sleep 5555; y=2"])
    while not processes(box, "sleep 5555"):
        time.sleep(0.02)
    shell = Terminal("demo", "--session", "busy")
    try:
        shell.until(rb"one is running now")
        shell.until(PROMPT)
        shell.run("false")
        assert b"1" in shell.run("echo $y")
    finally:
        shell.close()
        box.signal(next(each for each in box.processes() if "5555" in each.command))
        running.wait()


def test_a_session_that_there_is_not_is_named(box: Sandbox) -> None:
    terminal = Terminal("demo", "--session", "nope")
    assert terminal.end() == 1
    assert b"no session 'nope'" in terminal.left and terminal.restored()
    terminal.close()


# ---- what it cannot do ----------------------------------------------------------------------------------------------


def test_a_sandbox_that_does_not_run_is_an_error_with_the_cure(node_home: Path) -> None:
    with Sandbox(SandboxConfig(name="off", memory="64m")) as sandbox:
        sandbox.stop()
        terminal = Terminal("off")
        assert terminal.end() == 1
        assert b"try: rockroll sandbox start" in terminal.left
        terminal.close()


def test_an_episode_at_work_is_found_by_its_run_and_one_that_has_ended_is_not(box: Sandbox, tmp_path: Path) -> None:
    for folder in ("episodes", "running"):
        (tmp_path / folder).mkdir()
    # The box is another episode's by the time that a record has it.
    ended = {"id": "e1", "outcome": "ok", "sandbox": box.id, "node": os.uname().nodename}
    (tmp_path / "episodes" / "train-000001.jsonl").write_text(json.dumps(ended) + "\n")
    here = {"id": "e2", "sandbox": box.id, "node": os.uname().nodename}
    (tmp_path / "running" / "e2.json").write_text(json.dumps(here))
    (tmp_path / "running" / "e4.json").write_text(json.dumps(here | {"id": "e4", "node": "elsewhere"}))
    terminal = Terminal(f"{tmp_path}/e2")
    terminal.until(PROMPT)
    terminal.type("exit 4\n")
    assert terminal.end() == 4
    terminal.close()
    for episode, said in (
        ("e1", b"has ended with outcome ok"),
        ("e3", b"no record of an episode e3"),
        ("e4", b"on elsewhere"),
    ):
        terminal = Terminal(f"{tmp_path}/{episode}")
        assert terminal.end() == 1
        assert said in terminal.left.replace(b"\r\n", b" ")
        terminal.close()


def test_a_folder_that_is_no_run_is_wrong_usage(box: Sandbox, tmp_path: Path) -> None:
    terminal = Terminal(f"{tmp_path}/e1")
    assert terminal.end() == 2
    assert b"no run directory" in terminal.left.replace(b"\r\n", b" ")
    terminal.close()
