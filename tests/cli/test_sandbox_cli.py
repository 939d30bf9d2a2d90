"""What `rockroll sandbox` and `rockroll debug` promise, each call a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import IS_ROOT, needs_freezer, needs_limits

ROCKROLL = [sys.executable, "-m", "rockroll"]

pytestmark = pytest.mark.usefixtures("node_home")


def rockroll(*arguments: str, stdin: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([*ROCKROLL, *arguments], input=stdin, capture_output=True, timeout=60)
    if code is not None:
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def sandbox(*arguments: str, stdin: bytes = b"", code: int | None = 0) -> subprocess.CompletedProcess[bytes]:
    return rockroll("sandbox", *arguments, stdin=stdin, code=code)


@pytest.fixture(scope="module")
def box(node_home: Path) -> Iterator[str]:
    (made,) = json.loads(sandbox("up", "--name", "demo", "--memory", "128m", "--json").stdout)
    yield made["id"]
    sandbox("down", made["id"], code=None)


# ---- up, ls, down --------------------------------------------------------------------------------------------------


def test_up_prints_what_ls_lists_and_down_removes_it() -> None:
    made = json.loads(sandbox("up", "--count", "3", "--name", "many", "--memory", "64m", "--json").stdout)
    assert [each["name"] for each in made] == ["many-1", "many-2", "many-3"]
    assert all({"id", "name", "state", "image", "node"} <= each.keys() for each in made)
    listed = {each["id"]: each for each in json.loads(sandbox("ls", "--json").stdout)}
    assert all(listed[each["id"]]["state"] == "running" for each in made)
    sandbox("down", *(each["id"] for each in made))
    assert not {each["id"] for each in made} & {each["id"] for each in json.loads(sandbox("ls", "--json").stdout)}


@needs_limits
def test_flags_reach_the_box(tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("from outside")
    tmp_path.chmod(0o755)  # root in the box is nobody out here
    options = [
        "--env",
        "A=b c",
        "--label",
        "job=7",
        "--pids",
        "33",
        "--mount",
        f"{tmp_path}:/mnt/host:ro",
        "--ttl",
        "1h",
    ]
    id = sandbox("up", "--memory", "96m", "--cpus", "0.5", *options).stdout.decode().strip()
    seen = sandbox("exec", id, "--", "sh", "-c", "echo $A; cat /mnt/host/hello; touch /mnt/host/x", code=1)
    stats = json.loads(sandbox("stats", id, "--json").stdout)
    (info,) = [each for each in json.loads(sandbox("ls", "--json").stdout) if each["id"] == id]
    sandbox("down", id)
    assert seen.stdout == b"b c\nfrom outside"
    assert b"Read-only file system" in seen.stderr
    assert (stats["memory_limit"], stats["pids_limit"]) == (96 << 20, 33)
    assert info["labels"] == {"job": "7"}


def test_network_shows_whom_a_box_may_reach_and_what_was_refused(box: str) -> None:
    id = sandbox("up", "--memory", "64m", "--network", "allow:pypi.org,*.debian.org").stdout.decode().strip()
    sandbox("exec", id, "--", "curl", "-s", "http://evil.com/")
    shown = sandbox("network", id).stdout.decode()
    told = json.loads(sandbox("network", id, "--json").stdout)
    sandbox("down", id)
    assert shown.startswith("network: allow:pypi.org,*.debian.org\n0 allowed, 1 refused, 0 failed, 0 open\nAGE ")
    assert re.search(r"refused +GET evil.com:80 .* can add \"evil.com\" to its network list\n", shown)
    assert (told["refused"], told["recent"][0]["host"], told["recent"][0]["port"]) == (1, "evil.com", 80)
    assert sandbox("network", box).stdout == b"network: none\n"


def test_stop_and_start_keep_files(box: str) -> None:
    sandbox("exec", box, "--", "sh", "-c", "echo kept > /srv/kept")
    sandbox("stop", "demo")
    assert b"stopped" in sandbox("ls").stdout
    sandbox("start", "demo")
    assert sandbox("exec", box, "--", "cat", "/srv/kept").stdout == b"kept\n"


def test_what_somebody_else_chose_does_not_drive_the_terminal() -> None:
    id = sandbox("up", "--memory", "64m", "--label", "evil=\x1b[31m[red]\x07").stdout.decode().strip()
    seen = sandbox("ls").stdout
    sandbox("down", id)
    assert b"evil=\\x1b[31m[red]\\x07" in seen
    assert b"\x1b" not in seen and b"\x07" not in seen


def test_neither_do_names_of_a_box_in_an_error(box: str, tmp_path: Path) -> None:
    sandbox("exec", "demo", "--", "bash", "-c", r"mkdir /srv/evil; touch /srv/evil/$'\e[31m\a'")
    (tmp_path / "evil" / "\x1b[31m\x07").mkdir(parents=True)
    said = sandbox("cp", "demo:/srv/evil", str(tmp_path / "evil"), code=1).stderr
    assert rb"\x1b[31m\x07 is a folder on this side" in said
    assert b"\x1b" not in said and b"\x07" not in said


# ---- exec ----------------------------------------------------------------------------------------------------------


def test_exec_passes_bytes_and_the_exit_code_through(box: str) -> None:
    done = sandbox("exec", "demo", "--", "sh", "-c", r"printf 'a\000\377'; echo oops >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == (b"a\0\xff", b"oops\n")


def test_two_processes_reach_the_same_session(box: str) -> None:
    sandbox("exec", "demo", "--session", "s", "--", "cd /usr; x=1")
    assert sandbox("exec", "demo", "--session", "s", "--", "echo $x $PWD").stdout == b"1 /usr\n"
    assert sandbox("exec", "demo", "--session", "s", "--", "printf", "%s|", "a b", "$x").stdout == b"a b|$x|"


def test_a_timeout_is_exit_code_124(box: str) -> None:
    assert b"--timeout 0.3 s" in sandbox("exec", "demo", "--timeout", "0.3", "--", "sleep", "50", code=124).stderr
    sandbox("exec", "demo", "--session", "t", "--timeout", "300ms", "--", "sleep 50", code=124)
    assert sandbox("exec", "demo", "--session", "t", "--", "echo alive").stdout == b"alive\n"


def test_exec_reads_standard_input_when_asked(box: str) -> None:
    assert sandbox("exec", "demo", "-i", "--", "cat", stdin=b"through\0").stdout == b"through\0"
    assert sandbox("exec", "demo", "-i", "--session", "s", "--", "cat", stdin=b"line\n").stdout == b"line\n"


def test_exec_prints_what_comes_as_it_comes(box: str) -> None:
    argv = [*ROCKROLL, "sandbox", "exec", "demo", "-i", "--", "sh", "-c", "echo ready; read x; echo got $x"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin and running.stdout
        assert running.stdout.readline() == b"ready\n"
        running.stdin.write(b"it\n")
        running.stdin.close()
        assert running.stdout.readline() == b"got it\n"


def test_a_detached_command_is_followed_by_its_name(box: str) -> None:
    sandbox("exec", "demo", "-d", "--id", "slow", "--session", "s", "--", "echo one; sleep 0.3; echo two; (exit 4)")
    assert sandbox("follow", "demo", "slow", code=4).stdout == b"one\ntwo\n"
    assert sandbox("follow", "demo", "slow", "--offset", "4", code=4).stdout == b"two\n"
    (info,) = [
        each for each in json.loads(sandbox("commands", "demo", "--json").stdout) if each["command_id"] == "slow"
    ]
    assert (info["state"], info["exit_code"], info["output_bytes"]) == ("done", 4, 8)
    sandbox("exec", "demo", "-d", "--id", "slow", "--session", "s", "--", "another", code=2)
    assert b"no command" in sandbox("follow", "demo", "never", code=1).stderr


def test_ctrl_c_kills_the_command(box: str) -> None:
    argv = [*ROCKROLL, "sandbox", "exec", "demo", "--", "sh", "-c", "echo ready; sleep 98765"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as running:
        assert running.stdout and running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    assert b"98765" not in sandbox("exec", "demo", "--", "ps", "axo", "args").stdout


def test_exec_as_json(box: str) -> None:
    seen = json.loads(sandbox("exec", "demo", "--json", "--", "sh", "-c", "echo out; exit 3", code=3).stdout)
    assert (seen["stdout"], seen["exit_code"], seen["outcome"]) == ("out\n", 3, "ok")


def test_logs_have_what_was_printed(box: str) -> None:
    sandbox("exec", "demo", "--", "echo", "for the log")
    assert b"for the log\n" in sandbox("logs", "demo").stdout


def test_following_the_log_shows_what_comes_and_ends_with_the_box() -> None:
    sandbox("up", "--name", "followed", "--memory", "64m")
    with subprocess.Popen([*ROCKROLL, "sandbox", "logs", "followed", "-f"], stdout=subprocess.PIPE) as following:
        sandbox("exec", "followed", "--", "echo", "while you watch")
        sandbox("down", "followed")
        seen, _ = following.communicate(timeout=30)
    assert b"while you watch\n" in seen


# ---- cp ------------------------------------------------------------------------------------------------------------


def test_cp_copies_files_and_folders_both_ways(box: str, tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/a:b").write_bytes(b"\0bytes")
    sandbox("cp", str(tmp_path / "tree"), "demo:/srv/tree")
    sandbox("cp", str(tmp_path / "tree/deep/a:b"), "demo:/srv/into/")
    sandbox("cp", "demo:/srv/tree", str(tmp_path / "back"))
    sandbox("cp", "demo:/srv/into/a:b", f"{tmp_path}/")
    assert (tmp_path / "back/deep/a:b").read_bytes() == b"\0bytes"
    assert (tmp_path / "a:b").read_bytes() == b"\0bytes"


def test_cp_says_what_it_left_out_and_json_says_all(box: str, tmp_path: Path) -> None:
    sandbox("exec", "demo", "--", "sh", "-c", "mkdir -p /srv/odd; cd /srv/odd; mkfifo pipe; ln -s /etc out; echo x >f")
    done = sandbox("cp", "demo:/srv/odd", str(tmp_path / "odd"))
    assert b"left out: pipe: a FIFO\n" in done.stderr
    assert b"left out: out: a link that leads out of the tree, to /etc\n" in done.stderr
    seen = json.loads(sandbox("cp", "--json", "--all-links", "demo:/srv/odd", str(tmp_path / "all")).stdout)
    assert (seen["files"], seen["links"], seen["left_out"]) == (1, 1, [{"path": "pipe", "why": "a FIFO"}])
    assert (tmp_path / "all/out").readlink() == Path("/etc")
    seen = json.loads(sandbox("cp", "--json", str(tmp_path / "odd"), "demo:/srv/back").stdout)
    assert (seen["files"], seen["left_out_count"]) == (1, 0)


def test_cp_shows_people_how_far_it_is(box: str, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.write(os.urandom(1 << 20) * 400)
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(ROCKROLL[0], [*ROCKROLL, "sandbox", "cp", str(tmp_path / "large"), "demo:/srv/large"])
    seen = read_terminal(terminal)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    sandbox("exec", "demo", "--", "rm", "/srv/large")
    assert status == 0
    assert re.search(rb"\d files, [\d.,]+ MB, [\d,]+ MB/s", seen), seen


def test_watch_prints_changes_until_the_box_is_gone() -> None:
    sandbox("up", "--name", "watched", "--memory", "64m")
    with subprocess.Popen([*ROCKROLL, "sandbox", "watch", "watched", "/srv", "-r"], stdout=subprocess.PIPE) as watching:
        assert watching.stdout
        seen = b""
        while not seen:  # until it watches: the first changes may come before
            sandbox("exec", "watched", "--", "touch", "/srv/a")
            if select.select([watching.stdout], [], [], 0.5)[0]:
                seen = os.read(watching.stdout.fileno(), 4096)
        sandbox("exec", "watched", "--", "mv", "/srv/a", "/srv/b")
        sandbox("down", "watched")
        rest, _ = watching.communicate(timeout=30)
    assert b"moved     /srv/b (was /srv/a)\n" in seen + rest
    assert watching.returncode == 0


# ---- snapshots and forks -------------------------------------------------------------------------------------------


@needs_freezer
def test_a_box_is_prepared_once_and_started_many_times(box: str) -> None:
    sandbox("exec", box, "--", "sh", "-c", "echo ready >/srv/file")
    taken = json.loads(sandbox("snapshot", box, "cli", "--json").stdout)
    assert (taken["name"], taken["sandbox"], "env" in taken["config"]) == ("cli", box, False)
    assert b"'cli' exists; take another name" in sandbox("snapshot", box, "cli", code=2).stderr
    made = json.loads(sandbox("up", "--snapshot", "cli", "--count", "2", "--memory", "64m", "--json").stdout)
    (forked,) = json.loads(sandbox("fork", made[0]["id"], "--name", "cli-fork", "--json").stdout)
    assert (forked["name"], forked["owner"]) == ("cli-fork", "detached")
    for each in [*made, forked]:
        assert sandbox("exec", each["id"], "--", "cat", "/srv/file").stdout == b"ready\n"
    sandbox("down", *(each["id"] for each in [*made, forked]))
    assert re.search(rb"^cli  +[\d.]+k? +localhost/rockroll-base:1 +\d+s$", sandbox("snapshots").stdout, re.MULTILINE)
    assert sandbox("snapshots", "--rm", "cli").stdout == b"cli\n"
    assert json.loads(sandbox("snapshots", "--json").stdout) == []
    assert b"no snapshot 'cli'; there are: none" in sandbox("up", "--snapshot", "cli", code=1).stderr


@pytest.mark.skipif(not IS_ROOT, reason="a disk limit needs root")
def test_a_disk_limit_is_shown(box: str) -> None:
    (made,) = json.loads(sandbox("up", "--disk", "32m", "--memory", "64m", "--json").stdout)
    assert b"No space left" in sandbox("exec", made["id"], "--", "sh", "-c", "yes >/srv/x", code=1).stderr
    assert re.search(rb"^disk +3\d.*m of 3\d.*m$", sandbox("stats", made["id"]).stdout, re.MULTILINE)
    sandbox("down", made["id"])


# ---- processes, variables, logs ------------------------------------------------------------------------------------


def test_ps_shows_what_kill_ends(box: str) -> None:
    sandbox("exec", "demo", "--session", "p", "--", "sleep 4567 &")
    found: list[dict] = []
    while not found:  # until the shell's copy of itself has become `sleep`
        found = [each for each in json.loads(sandbox("ps", "demo", "--json").stdout) if each["command"] == "sleep 4567"]
    assert (found[0]["user"], found[0]["session"]) == ("root", "p")
    assert b"sleep 4567" in sandbox("ps", "demo").stdout
    sandbox("kill", "demo", str(found[0]["pid"]), "--signal", "KILL")
    assert b"init" in sandbox("kill", "demo", "1", code=2).stderr
    assert b"no process 99999" in sandbox("kill", "demo", "99999", code=1).stderr
    assert b"as in TERM" in sandbox("kill", "demo", "1", "--signal", "NO", code=2).stderr


def test_variables_are_shown_and_set_for_what_comes(box: str) -> None:
    sandbox("exec", "demo", "--session", "v", "--", "true")
    sandbox("env", "demo", "STAGE=a b", "--unset", "NOTHING")
    assert b"STAGE=a b\n" in sandbox("env", "demo").stdout
    assert json.loads(sandbox("env", "demo", "--json").stdout)["STAGE"] == "a b"
    assert sandbox("exec", "demo", "--session", "v", "--", "echo $STAGE").stdout == b"a b\n"
    sandbox("env", "demo", "--unset", "STAGE")
    assert sandbox("exec", "demo", "--", "printenv", "STAGE", code=1).stdout == b""
    assert b"K=V" in sandbox("env", "demo", "STAGE", code=2).stderr


def test_logs_from_an_offset_and_the_last_lines() -> None:
    id = sandbox("up", "--memory", "64m").stdout.decode().strip()
    sandbox("exec", id, "--", "seq", "5")
    whole = sandbox("logs", id).stdout
    assert whole.endswith(b"1\n2\n3\n4\n5\n")
    assert sandbox("logs", id, "--tail", "2").stdout == b"4\n5\n"
    assert sandbox("logs", id, "--tail", "0").stdout == b""
    assert sandbox("logs", id, "--offset", str(len(whole) - 4)).stdout == b"4\n5\n"
    sandbox("down", id)


@needs_limits
def test_a_cpuset_reaches_the_box_and_one_that_cannot_be_is_refused() -> None:
    cpu = str(max(os.sched_getaffinity(0)))
    id = sandbox("up", "--memory", "64m", "--cpuset", cpu, "--allow-unenforced").stdout.decode().strip()
    assert sandbox("exec", id, "--", "nproc").stdout == b"1\n"
    sandbox("down", id)
    assert b"as in 0-1,3" in sandbox("up", "--cpuset", "x", code=2).stderr


# ---- debug ---------------------------------------------------------------------------------------------------------


def test_debug_is_a_shell_on_the_users_terminal(box: str) -> None:
    env = {**os.environ, "TERM": "vt100"}
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(ROCKROLL[0], [*ROCKROLL, "debug", "demo"], env)
    os.write(terminal, b"echo $((6*7))-$TERM-$OPENAI_BASE_URL; tty; exit 9\n")
    seen = read_terminal(terminal)
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert b"42-vt100-http://127.0.0.1:41414/v1" in seen, seen
    assert b"/dev/pts/" in seen
    assert os.waitstatus_to_exitcode(status) == 9


def test_debug_without_a_terminal_says_so(box: str) -> None:
    assert b"needs a terminal" in rockroll("debug", "demo", code=2).stderr


def read_terminal(terminal: int) -> bytes:
    seen, end = b"", time.monotonic() + 20
    while time.monotonic() < end and select.select([terminal], [], [], 20)[0]:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # EIO: the other side has closed it
            break
        if not part:
            break
        seen += part
    return seen


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["exec", "nobody", "--", "true"], 1, "nobody"),
        (["down", "nobody"], 1, "nobody"),
        (["down"], 2, "--all"),
        (["down", "--all", "demo"], 2, "--all"),
        (["up", "--memory", "64k"], 2, "try memory: 64m"),
        (["up", "--memory", "lots"], 2, "512m"),
        (["up", "--env", "novalue"], 2, "K=V"),
        (["up", "--network", "maybe"], 2, "open"),
        (["up", "--network", "allow:http://pypi.org"], 2, "leave http:// out"),
        (["forward", "demo", "http"], 2, "9000:8080"),
        (["forward", "demo", "70000"], 2, "65535"),
        (["forward", "demo", "8080", "8081", "--local", "1"], 2, "LOCAL:PORT"),
        (["forward", "demo", "0:8080", "--address", "203.0.113.7"], 2, "cannot be listened at"),
        (["forward", "nobody", "8080"], 1, "nobody"),
        (["up", "--ttl", "soon"], 2, "1h"),
        (["up", "--name", "no spaces"], 2, "letters"),
        (["up", "--count", "0"], 2, "count"),
        (["up", "--mount", "/nothing-here:/mnt"], 1, "/nothing-here"),
        (["up", "localhost/nothing-here:1"], 1, "rockroll image build"),
        (["exec", "demo", "--timeout", "soon", "--", "true"], 2, "--timeout"),
        (["cp", "a", "b"], 2, "ID:PATH"),
        (["cp", "/etc/hostname", "demo:/srv"], 1, "/srv/"),
        (["watch", "demo", "/nothing-here"], 1, "/nothing-here"),
        (["watch", "demo", "/proc"], 1, "kernel"),
        (["cp", "/nothing-here", "demo:/srv/x"], 1, "/nothing-here"),
        (["cp", "demo:/nothing-here", "/tmp/x"], 1, "/nothing-here"),
        (["exec", "demo"], 2, "CMD"),
    ],
)
def test_bad_input_is_one_line_with_the_cure(box: str, arguments: list[str], code: int, said: str) -> None:
    stderr = sandbox(*arguments, code=code).stderr.decode()
    assert said in stderr
    assert "Traceback" not in stderr
    if code == 1:
        assert re.fullmatch(r"rockroll: [^\n]+\n", stderr)


def test_down_removes_the_others_although_one_is_missing() -> None:
    id = sandbox("up", "--memory", "64m").stdout.decode().strip()
    done = sandbox("down", "nobody", id, code=1)
    assert done.stdout.decode().strip() == id
    assert b"nobody" in done.stderr


def test_ls_needs_no_import_that_makes_people_wait(box: str) -> None:
    script = "import sys; from rockroll.cli.main import run; run(['sandbox', 'ls']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "deepspeed", "aiohttp", "ray"} & set(done.stdout.split())


def test_down_all_leaves_nothing() -> None:
    sandbox("up", "--count", "2", "--memory", "64m")
    sandbox("down", "--all")
    assert json.loads(sandbox("ls", "--json").stdout) == []
