"""What ROCK's SDK finds here: rl-rock as it is on PyPI, in a process and with packages of its own, against our server.

Each test sends that process lines of Python, as a user of ROCK would write them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from rockroll import Sandbox, rpc
from rockroll.errors import ImageMissing, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.client import list_sandboxes
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.container.podman import Podman
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.rock.boxes import Boxes, config_of, find, not_up, whole_name
from rockroll.sandbox.rock.forms import Start

ROOT = Path(__file__).parents[2]
USER = """
import asyncio, json, logging, sys, textwrap, warnings
from pathlib import Path
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
from rock.actions import (BashAction, CloseSessionRequest, CloseBashSessionRequest, Command, CreateBashSessionRequest,
    ReadFileRequest, UploadRequest, WriteFileRequest)
from rock.actions.sandbox.request import ChmodRequest, UploadMode
from rock.sdk.sandbox.client import RunMode, Sandbox, SandboxGroup
from rock.sdk.sandbox.config import SandboxConfig, SandboxGroupConfig
import rock

def config(**more):
    given = dict(base_url=sys.argv[1], extra_headers={"XRL-Authorization": "Bearer " + sys.argv[2]},
        image="localhost/rockroll-base:1", memory="256m", cpus=1)
    return SandboxConfig(**{**given, **more})

async def main():
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            exec("async def lines():\\n" + textwrap.indent(json.loads(line), "    "), globals())
            said = {"result": await lines()}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), flush=True)
asyncio.run(main())
"""


class SdkError(Exception):
    """What a line of the SDK's user raised."""


class Server(NamedTuple):
    url: str
    token: str


@pytest.fixture(scope="module")
def server(node_home: Path) -> Iterator[Server]:
    """`rockroll serve`, in a process of its own."""
    argv = [sys.executable, "-m", "rockroll", "serve", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = process.stdout.readline().split()
        assert said, "the server did not start"
        yield Server(said[1], (node_home / "token").read_text().strip())
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def sdk() -> str:
    """A Python that has rl-rock."""
    return subprocess.run([ROOT / "scripts/rock-sdk"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def rock(server: Server, sdk: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """rock(lines): what they return, in one process for all tests of this file. `sandbox` there is up, and has a
    session `main`."""
    argv = [sdk, "-c", USER, *server]
    folder = tmp_path_factory.mktemp("user")
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=env
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout

        def ask(lines: str) -> Any:
            print(json.dumps(textwrap.dedent(lines)), file=stdin, flush=True)
            said = json.loads(stdout.readline())
            if "error" in said:
                raise SdkError(said["error"])
            return said["result"]

        ask("""
            global sandbox
            sandbox = Sandbox(config(user_id="ada", experiment_id="first"))
            await sandbox.start()
            sandbox.config.auto_clear_seconds = 3  # from here on it only says how often nohup mode looks: each second
            await sandbox.create_session(CreateBashSessionRequest(session="main", env={"STAGE": "one"}))
        """)
        yield ask
        ask("await sandbox.stop(); await sandbox.delete()")
        stdin.close()
        assert process.wait(20) == 0


# ---- life ------------------------------------------------------------------------------------------------------------


def test_a_started_sandbox_is_alive_and_says_where_and_what_it_is(rock: Callable[[str], Any]) -> None:
    alive, message, status = rock("""
        alive = await sandbox.is_alive()
        return alive.is_alive, alive.message, (await sandbox.get_status()).model_dump(mode="json")
    """)
    assert (alive, message) == (True, os.uname().nodename)
    assert (status["state"], status["image"], status["host_ip"]) == (
        "running",
        "localhost/rockroll-base:1",
        "127.0.0.1",
    )
    assert (status["cpus"], status["memory"], status["disk"]) == (1.0, "256m", "50G")
    assert (status["user_id"], status["experiment_id"]) == ("ada", "first")
    assert {phase["status"] for phase in status["status"].values()} == {"success"}


def test_its_limits_are_the_boxes_own(rock: Callable[[str], Any]) -> None:
    disk = rock("""return (await sandbox.arun("df -BG --output=size / | tail -1", session="main")).output""")
    assert disk in ("49G", "50G")


def test_a_sandbox_id_may_be_chosen_and_is_taken_then(rock: Callable[[str], Any]) -> None:
    chosen, other, told = rock("""
        first = Sandbox(config(sandbox_id="mine"))
        await first.start()
        other = Sandbox(config())
        await other.attach("mine")
        try:
            await Sandbox(config(sandbox_id="mine")).start()
        except rock.BadRequestRockError as error:
            told = str(error)
        await first.is_alive()
        seen = first.sandbox_id, (await other.execute(Command(command=["echo", "same"]))).stdout, told
        await first.delete()
        return seen
    """)
    assert (chosen, other) == ("mine", "same\n")
    assert "a sandbox named 'mine' exists" in told


def test_two_sandboxes_run_side_by_side_and_share_nothing(rock: Callable[[str], Any]) -> None:
    assert rock("""
        group = SandboxGroup(SandboxGroupConfig(**config().model_dump(), size=2))
        await group.start()
        both = group.sandbox_list
        await asyncio.gather(*(each.write_file_by_path(each.sandbox_id, "/tmp/who") for each in both))
        said = await asyncio.gather(*(each.arun("sleep 0.2; cat /tmp/who") for each in both))
        await asyncio.gather(*(each.delete() for each in both))
        return [each.output for each in said] == [each.sandbox_id for each in both]
    """)


def test_stop_keeps_the_files_restart_brings_them_back_and_delete_removes_all(rock: Callable[[str], Any]) -> None:
    assert rock("""
        box = Sandbox(config())
        await box.start()
        await box.create_session(CreateBashSessionRequest(session="s", env={"A": "1"}))
        await box.arun("echo kept > /root/file", session="s")
        seen = []
        try:
            await box.restart()
        except rock.BadRequestRockError as error:
            seen.append("stop it first" in str(error))
        await box.stop()
        await box.stop()
        try:
            await box.arun("true", session="s")
        except Exception as error:
            seen.append("is stopped; `restart` brings it back" in str(error))
        seen.append((await box.get_status(include_all_states=True)).state)
        try:
            await box.is_alive()
        except Exception as error:
            seen.append("include_all_states" in str(error))
        await box.restart()
        seen.append((await box.is_alive()).is_alive)
        await box.create_session(CreateBashSessionRequest(session="s", env={"A": "2"}))
        seen.append((await box.arun("cat /root/file; echo $A", session="s")).output)
        await box.stop()
        await box.delete()
        await box.delete()
        seen.append((await box.get_status(include_all_states=True)).state)
        return seen
    """) == [True, True, "stopped", True, True, "kept\n2", "deleted"]


def init_of(shell: int) -> int:
    """The host's pid of the first process in that shell's box."""
    space = Path(f"/proc/{shell}/ns/pid").readlink()
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            numbers = next(line for line in (found / "status").read_text().splitlines() if line.startswith("NSpid:"))
            if (found / "ns/pid").readlink() == space and numbers.endswith("\t1"):
                return int(found.name)
    raise AssertionError(f"no init in the box of {shell}")


async def test_a_sandbox_that_dies_under_a_command_is_told_and_brought_back_with_its_files(
    rock: Callable[[str], Any], node: rpc.Client
) -> None:
    name = rock("""
        global dying, running
        dying = Sandbox(config())
        await dying.start()
        await dying.write_file_by_path("kept", "/root/file")
        await dying.create_session(CreateBashSessionRequest(session="s"))
        running = asyncio.ensure_future(dying.arun("sleep 305", session="s"))
        while not (await dying.execute(Command(command=["pgrep", "-f", "^sleep 305"]))).stdout:
            pass
        return dying.sandbox_id
    """)
    (session,) = await node.call("session.list", wire.Ref(id=name), type=list[wire.SessionInfo])
    os.kill(init_of(session.pid), signal.SIGKILL)
    with pytest.raises(SdkError, match=r"died meanwhile \(killed\)"):
        rock("await running")
    assert rock("""
        state = (await dying.get_status(include_all_states=True)).state
        await dying.restart()
        read = await dying.read_file(ReadFileRequest(path="/root/file"))
        await dying.delete()
        return state, read.content
    """) == ["stopped", "kept"]


def test_a_sandbox_that_is_to_go_with_its_stop_goes(rock: Callable[[str], Any]) -> None:
    assert (
        rock("""
        box = Sandbox(config(auto_delete_seconds=0))
        await box.start()
        await box.close()
        return (await box.get_status(include_all_states=True)).state
    """)
        == "deleted"
    )


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ('image="localhost/not-there:1"', "localhost/not-there:1"),
        ('memory="64k"', "memory: 64k is under the 6 MB"),
        ('memory="lots"', "memory: a size is digits"),
        ('image_os="windows"', "image_os"),
        ("num_gpus=1", "no GPU"),
        ("auto_archive_seconds=60", "nothing is archived"),
        ('sandbox_id="no/name"', "name: "),
    ],
)
def test_a_start_that_cannot_be_is_refused_at_once_with_the_reason(
    rock: Callable[[str], Any], wish: str, told: str
) -> None:
    with pytest.raises(SdkError, match="BadRequestRockError") as error:
        rock(f"await Sandbox(config({wish})).start()")
    assert told in str(error.value)


def test_a_start_that_takes_too_long_is_given_up_and_leaves_nothing(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match=r"InternalServerRockError.*not up after 0.01 s"):
        rock("""await Sandbox(config(sandbox_id="late", startup_timeout=0.01)).start()""")
    assert (
        rock("""
        box = Sandbox(config(sandbox_id="late"))
        await box.start()
        await box.delete()
        return box.sandbox_id
    """)
        == "late"
    )


def test_what_rock_has_no_field_for_goes_in_headers(rock: Callable[[str], Any]) -> None:
    pids, routes = rock("""
        more = {"XRL-Authorization": "Bearer " + sys.argv[2], "X-Rockroll-Pids": "33", "X-Rockroll-Network": "open"}
        box = Sandbox(config(extra_headers=more))
        await box.start()
        limit = await box.execute(Command(command=["cat", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"]))
        routes = await box.execute(Command(command=["cat", "/proc/net/route"]))
        await box.delete()
        return limit.stdout.strip(), len(routes.stdout.splitlines())
    """)
    assert pids == "33"
    assert routes > 1
    with pytest.raises(SdkError, match=r"network: .*far"):
        rock("""
            more = {"XRL-Authorization": "Bearer " + sys.argv[2], "X-Rockroll-Network": "far"}
            await Sandbox(config(extra_headers=more)).start()
        """)
    with pytest.raises(SdkError, match="X-Rockroll-Pids: a number"):
        rock("""
            more = {"XRL-Authorization": "Bearer " + sys.argv[2], "X-Rockroll-Pids": "many"}
            await Sandbox(config(extra_headers=more)).start()
        """)


def test_without_the_token_nobody_comes_in(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match="401"):
        rock("await Sandbox(config(extra_headers={})).start()")
    assert (
        rock("""
        box = Sandbox(config(extra_headers={}, xrl_authorization=sys.argv[2]))
        await box.attach(sandbox.sandbox_id)
        return (await box.execute(Command(command=["true"]))).exit_code
    """)
        == 0
    )


def test_unknown_sandboxes_are_named(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match="no sandbox 'nobody'"):
        rock("""await Sandbox(config()).attach("nobody")""")


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_keeps_folder_variables_and_functions(rock: Callable[[str], Any]) -> None:
    assert rock("""
        await sandbox.arun("cd /srv; x=7; f() { echo f:$1; }", session="main")
        seen = await sandbox.arun("pwd; f $x; echo $STAGE", session="main")
        return seen.output, seen.exit_code, seen.failure_reason
    """) == ["/srv\nf:7\none", 0, ""]


def test_output_is_in_the_order_of_writing_without_escapes_and_outer_space(rock: Callable[[str], Any]) -> None:
    assert (
        rock(r"""
        code = "echo; echo one; echo two >&2; printf '\033[31mthree\033[0m \033]0;title\007end\n\n'"
        return (await sandbox.arun(code, session="main")).output
    """)
        == "one\ntwo\nthree end"
    )


def test_a_command_that_fails_raises_unless_it_is_not_checked(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match="exit code 3") as error:
        rock("""await sandbox.arun("echo so; (exit 3)", session="main")""")
    assert "so" in str(error.value)
    assert rock("""
        seen = []
        for check in "silent", "ignore":
            done = await sandbox.run_in_session(BashAction(command="echo so; (exit 3)", session="main", check=check))
            seen.append((done.output, done.exit_code))
        return seen
    """) == [["so", 3], ["so", None]]


def test_a_command_that_is_killed_for_memory_says_so(rock: Callable[[str], Any]) -> None:
    code, why = rock("""
        code = "python3 -c 'b = bytearray(1 << 30)'"
        done = await sandbox.run_in_session(BashAction(command=code, session="main", check="silent"))
        return done.exit_code, done.failure_reason
    """)
    assert (code, why) == (137, "killed for memory")


def test_no_output_can_pass_for_an_exit_code(rock: Callable[[str], Any]) -> None:
    assert rock("""
        code = "echo EXITCODESTART0EXITCODEEND; echo SHELLPS1PREFIX; (exit 9)"
        done = await sandbox.run_in_session(BashAction(command=code, session="main", check="silent"))
        return done.exit_code, done.output
    """) == [9, "EXITCODESTART0EXITCODEEND\nSHELLPS1PREFIX"]


def test_a_timeout_ends_the_command_and_the_next_one_gets_its_own_output(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match=r"timeout|ReadTimeout"):
        rock("""
            await sandbox.arun("y=kept", session="main")
            await sandbox.run_in_session(BashAction(command="echo early; sleep 300", session="main", timeout=0.5))
        """)
    assert (
        rock("""
        return (await sandbox.arun("echo $y; pgrep -r D,R,S,T -c sleep || true", session="main")).output
    """)
        == "kept\n0"
    )


def test_a_client_that_hangs_up_takes_its_command_with_it(rock: Callable[[str], Any]) -> None:
    assert (
        rock("""
        running = asyncio.ensure_future(sandbox.arun("sleep 301", session="main"))
        while not (await sandbox.execute(Command(command=["pgrep", "-f", "^sleep 301"]))).stdout:
            pass
        running.cancel()
        return (await sandbox.arun("pgrep -r D,R,S,T -c -f '^sleep 301' || true", session="main")).output
    """)
        == "0"
    )


def test_exit_ends_the_shell_and_the_session_goes_on_with_a_new_one(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match="exit code 5"):
        rock("""
            await sandbox.create_session(CreateBashSessionRequest(session="ends"))
            await sandbox.arun("exit 5", session="ends")
        """)
    assert rock("""return (await sandbox.arun("echo back", session="ends")).output""") == "back"


def test_startup_files_are_sourced_before_the_first_command(rock: Callable[[str], Any]) -> None:
    assert rock("""
        await sandbox.write_file_by_path("echo hello; export FROM=profile", "/root/my profile")
        await sandbox.write_file_by_path("g() { echo g:$FROM; }", "/root/more")
        files = ["'/root/my profile'", "~/more"]
        begun = await sandbox.create_session(CreateBashSessionRequest(session="sourced", startup_source=files))
        return begun.output, (await sandbox.arun("g", session="sourced")).output
    """) == ["hello", "g:profile"]


def test_a_session_is_made_first_made_twice_unchanged_and_closed(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match="no session 'twice'"):
        rock("""await sandbox.arun("true", session="twice")""")
    assert (
        rock("""
        await sandbox.create_session(CreateBashSessionRequest(session="twice"))
        await sandbox.arun("z=1", session="twice")
        await sandbox.create_session(CreateBashSessionRequest(session="twice"))
        seen = (await sandbox.arun("echo z=$z", session="twice")).output
        for _ in range(2):
            await sandbox.close_session(CloseBashSessionRequest(session="twice"))
        return seen
    """)
        == "z=1"
    )
    with pytest.raises(SdkError, match="'main'"):
        rock("""await sandbox.create_session(CreateBashSessionRequest(session="main", env={"STAGE": "two"}))""")
    with pytest.raises(SdkError, match="remote_user"):
        rock("""await sandbox.create_session(CreateBashSessionRequest(session="other", remote_user="nobody"))""")


def test_a_long_command_runs_with_nohup_and_its_output_is_fetched(rock: Callable[[str], Any]) -> None:
    assert rock("""
        done = await sandbox.arun("bash -c 'echo begin; sleep 0.5; echo end'", mode=RunMode.NOHUP, wait_timeout=20)
        kept = await sandbox.arun("echo kept", session="main", mode="nohup", output_file="/tmp/logs/run.out",
            ignore_output=True)
        file = await sandbox.read_file(ReadFileRequest(path="/tmp/logs/run.out"))
        return done.output, done.exit_code, kept.exit_code, "File size: 5 bytes" in kept.output, file.content
    """) == ["begin\nend", 0, 0, True, "kept\n"]


def test_a_nohup_command_that_takes_too_long_is_told_and_goes_on(rock: Callable[[str], Any]) -> None:
    code, why = rock("""
        done = await sandbox.arun("sleep 302", session="main", mode="nohup", wait_timeout=1)
        await sandbox.arun("pkill -f '^sleep 302'", session="main")
        return done.exit_code, done.failure_reason
    """)
    assert (code, "did not complete" in why) == (1, True)


def test_a_script_is_sent_and_run(rock: Callable[[str], Any]) -> None:
    assert rock("""return (await sandbox.process.execute_script("echo $((6 * 7))")).output""") == "42"


@pytest.mark.slow
def test_an_agent_of_the_sdk_is_installed_and_runs_in_its_own_runtime(rock: Callable[[str], Any]) -> None:
    # The SDK's own commands would fetch a Python; the image's is as good.
    assert rock(r"""
        import os
        from rock.sdk.sandbox.agent.rock_agent import RockAgentConfig
        os.environ["ROCK_RTENV_PYTHON_V31114_INSTALL_CMD"] = (
            "mkdir -p runtime-env/bin && ln -s $(command -v python3) runtime-env/bin/python")
        Path("work").mkdir()
        Path("work/agent.py").write_text(
            "import os, sys; print(os.getcwd() == os.environ['HERE'], sys.argv[1], os.environ['OPENAI_BASE_URL'])")
        await sandbox.agent.install(RockAgentConfig(working_dir="work", env={"HERE": "/srv/agent"},
            project_path="/srv/agent", run_cmd="python ${working_dir}/agent.py ${prompt}",
            post_init_cmds=[{"command": "echo ready > /srv/ready"}]))
        done = await sandbox.agent.run("what's 6 * 7?")
        ready = await sandbox.read_file(ReadFileRequest(path="/srv/ready"))
        return done.output, done.exit_code, ready.content
    """) == ["True what's 6 * 7? http://127.0.0.1:41414/v1", 0, "ready\n"]


# ---- programs --------------------------------------------------------------------------------------------------------


def test_execute_runs_a_program_with_its_own_folder_variables_and_exit_code(rock: Callable[[str], Any]) -> None:
    assert rock("""
        code = "pwd; echo $A; echo oops >&2; exit 4"
        done = await sandbox.execute(Command(command=["sh", "-c", code], cwd="/usr", env={"A": "b"}))
        none = await sandbox.execute(Command(command="not-a-program"))
        return done.stdout, done.stderr, done.exit_code, none.exit_code, "not found" in none.stderr
    """) == ["/usr\nb\n", "oops\n", 4, 127, True]


def test_a_program_that_takes_too_long_is_killed_and_has_no_exit_code_of_its_own(rock: Callable[[str], Any]) -> None:
    assert rock("""
        done = await sandbox.execute(Command(command=["sh", "-c", "echo early; sleep 303"], timeout=0.3))
        left = await sandbox.execute(Command(command=["pgrep", "-r", "D,R,S,T", "-f", "^sleep 303"]))
        return done.stdout, done.exit_code, "timeout after 0.3 s" in done.stderr, left.stdout
    """) == ["early\n", -1, True, ""]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_text_goes_both_ways_and_a_files_mode_stays(rock: Callable[[str], Any]) -> None:
    text = "ünï\r\ncödé 字 \t end"
    assert rock(f"""
        text = {text!r} * 200_000
        await sandbox.write_file_by_path(text, "/srv/large.txt")
        return (await sandbox.read_file(ReadFileRequest(path="/srv/large.txt"))).content == text
    """)
    assert rock(f"""
        text = {text!r}
        wrote = await sandbox.write_file(WriteFileRequest(path="/srv/new/deep/a.txt", content=text))
        await sandbox.fs.chmod(ChmodRequest(paths=["/srv/new/deep/a.txt"], mode="755"))
        await sandbox.write_file_by_path(text, "/srv/new/deep/a.txt")
        mode = (await sandbox.execute(Command(command=["stat", "-c", "%a", "/srv/new/deep/a.txt"]))).stdout
        read = await sandbox.read_file(ReadFileRequest(path="/srv/new/deep/a.txt"))
        return wrote.success, mode, read.content == text
    """) == [True, "755\n", True]


def test_bytes_go_both_ways_exactly_small_and_large(rock: Callable[[str], Any]) -> None:
    assert rock("""
        seen = []
        for size in 0, 1000, 20 << 20:
            data = (bytes(range(256)) * (size // 256 + 1))[:size]
            Path("data.bin").write_bytes(data)
            sent = await sandbox.upload(UploadRequest(source_path="data.bin", target_path="/srv/up/data.bin"))
            back = await sandbox.read_file(ReadFileRequest(path="/srv/up/data.bin", encoding="latin-1"))
            seen.append(sent.success and back.content.encode("latin-1") == data)
        done = await sandbox.execute(Command(command=["ls", "-A", "/srv/up"]))
        return seen, done.stdout
    """) == [[True, True, True], "data.bin\n"]


def test_text_that_is_none_is_an_error_or_read_as_the_caller_says(rock: Callable[[str], Any]) -> None:
    assert rock(r"""
        Path("odd").write_bytes(b"a\xff\xfeb")
        await sandbox.upload_by_path("odd", "/srv/odd")
        seen = []
        for errors in "replace", "surrogateescape":
            read = await sandbox.read_file(ReadFileRequest(path="/srv/odd", encoding="utf-8", errors=errors))
            seen.append(read.content.encode("utf-8", "surrogateescape") == b"a\xff\xfeb")
        return seen
    """) == [False, True]
    with pytest.raises(SdkError, match="422"):
        rock("""await sandbox.read_file(ReadFileRequest(path="/srv/odd"))""")


def test_a_folder_goes_up(rock: Callable[[str], Any]) -> None:
    assert rock("""
        Path("tree/sub").mkdir(parents=True)
        Path("tree/sub/a").write_text("in a folder")
        done = await sandbox.fs.upload_dir("tree", "/srv/tree")
        read = await sandbox.read_file(ReadFileRequest(path="/srv/tree/sub/a"))
        return done.exit_code, done.failure_reason, read.content
    """) == [0, "", "in a folder"]


def test_what_cannot_be_read_or_written_is_never_taken_for_done(rock: Callable[[str], Any]) -> None:
    with pytest.raises(SdkError, match="404"):
        rock("""await sandbox.read_file(ReadFileRequest(path="/srv/missing"))""")
    wrote, sent, told = rock("""
        Path("small").write_text("x")
        wrote = await sandbox.write_file_by_path("x", "/proc/version")
        sent = await sandbox.upload_by_path("small", "/srv")
        return wrote.success, sent.success, wrote.message + sent.message
    """)
    assert (wrote, sent) == (False, False)
    assert "/proc/version" in told
    assert "/srv is a folder" in told


# ---- what the SDK itself does not send -------------------------------------------------------------------------------


def post(server: Server, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request; a GET without a body."""
    request = urllib.request.Request(
        f"{server.url}/apis/envs/sandbox/v1{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {server.token}"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_start_waits_is_alive_answers_of_any_and_programs_may_be_shell_lines(server: Server) -> None:
    status, started = post(server, "/start", {"image": DEFAULT_IMAGE, "memory": "128m", "cpus": 1})
    assert (status, started["status"]) == (200, "Success")
    ref = {"sandbox_id": started["result"]["sandbox_id"]}
    alive = post(server, f"/is_alive?sandbox_id={ref['sandbox_id']}", None)[1]["result"]
    assert alive == {"is_alive": True, "message": os.uname().nodename}
    line = {**ref, "command": "echo $((40 + 2)); exit 3", "shell": True}
    done = post(server, "/execute", line)[1]["result"]
    assert (done["stdout"], done["exit_code"]) == ("42\n", 3)
    checked = post(server, "/execute", {**line, "check": True, "error_msg": "adding"})[1]
    assert (checked["status"], checked["result"]["code"], checked["result"]["exit_code"]) == ("Failed", 6000, 3)
    assert checked["error"].startswith("adding: exit code 3")
    post(server, "/stop", ref)
    assert post(server, f"/sandboxes/{ref['sandbox_id']}/restart", {})[1]["status"] == "Success"
    post(server, "/delete", ref)
    assert post(server, f"/is_alive?sandbox_id={ref['sandbox_id']}", None)[1]["result"]["is_alive"] is False


def test_a_form_with_something_missing_is_answered_in_the_envelope(server: Server) -> None:
    status, answer = post(server, "/run_in_session", {"sandbox_id": "", "session": "s"})
    assert (status, answer["status"], answer["result"]["code"]) == (200, "Failed", 4000)
    assert "command: Field required" in answer["error"]
    assert "sandbox_id: " in answer["error"]
    status, answer = post(server, "/read_file", {"sandbox_id": "nobody", "path": "/x"})
    assert (status, answer["status"]) == (404, "Failed")
    assert "no sandbox 'nobody'" in answer["error"]


def test_a_start_form_becomes_a_config() -> None:
    asked = Start(
        image=" python:3.11 ", memory="8Gi", cpus=2, limit_cpus=3, disk=None, auto_clear_time_minutes=0, sandbox_id="s"
    )
    made = config_of(asked, {"x-user-id": "ada", "x-cluster": "here"}, "s")
    assert (made.image, made.name, made.cpus, made.memory_bytes, made.disk) == ("python:3.11", "s", 3, 8 << 30, None)
    assert (made.idle_ttl_s, made.ttl_s, made.network) == (60, None, "none")
    labels = {key: value for key, value in made.labels.items() if key != "rock.start"}
    assert labels == {"rock.user_id": "ada", "rock.cluster": "here", "rock.cpus": "2", "rock.memory": "8Gi"}


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs_and_prints_what_it_says(server: Server, sdk: str, tmp_path: Path) -> None:
    page = (ROOT / "docs/rock-compat.md").read_text()
    code, said = (page.split(fence)[1].split("```")[0] for fence in ("```python\n", "migrate.py\n42"))
    (tmp_path / "migrate.py").write_text(code)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "ROCK_BASE_URL": server.url,
        "ROCKROLL_TOKEN": server.token,
    }
    argv = [sdk, tmp_path / "migrate.py"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=tmp_path, check=True)
    assert done.stdout == "42" + said


# ---- a start that takes its time -------------------------------------------------------------------------------------


@pytest.fixture
async def boxes(node: rpc.Client) -> AsyncIterator[Boxes]:
    yield Boxes(NodeLink())


async def test_a_start_is_pending_until_it_is_over_and_a_failed_one_says_why(boxes: Boxes) -> None:
    name = await boxes.start(Start(image=DEFAULT_IMAGE, memory="128m", sandbox_id="slow"), {}, patience_s=0)
    assert await boxes.pending(name, 0)
    with pytest.raises(UsageError, match="being started already"):
        await boxes.start(Start(image=DEFAULT_IMAGE, sandbox_id="slow"), {}, patience_s=0)
    assert not await boxes.pending(name, 20)
    assert (await find(NodeLink(), name)).state == "running"
    await (await Sandbox.attach(name)).delete()

    name = await boxes.start(Start(image="localhost/not-there:1", sandbox_id="never"), {}, patience_s=0)
    assert not await boxes.pending(name, 20)
    error = boxes.failure(name)
    assert isinstance(error, ImageMissing)
    told = not_up(name, "host", "127.0.0.1", error)
    assert told["status"]["image_pull"] == {"status": "failed", "message": error.message}


async def test_a_start_that_is_stopped_leaves_no_box(boxes: Boxes) -> None:
    name = await boxes.start(Start(image=DEFAULT_IMAGE, memory="128m"), {}, patience_s=0)
    await boxes.give_up(name)
    assert boxes.failure(name) is None
    assert not await boxes.pending(name, 0)
    assert name not in [info.name for info in await list_sandboxes()]


async def test_an_image_that_is_not_here_is_asked_of_its_registry(boxes: Boxes) -> None:
    with pytest.raises(ImageMissing, match=r"registry.invalid/some/image:1 could not be pulled"):
        await boxes.start(Start(image="registry.invalid/some/image:1"), {}, patience_s=60)


class Registry(BaseHTTPRequestHandler):
    """A registry with one image of one empty folder, for one user."""

    login = base64.b64encode(b"ada:secret").decode()
    content: ClassVar[dict[str, tuple[str, bytes]]] = {}

    @classmethod
    def fill(cls) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            folder = tarfile.TarInfo("srv")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        layer = packed.getvalue()
        oci = "application/vnd.oci.image"
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        rootfs = {"type": "layers", "diff_ids": [_digest(layer)]}
        config = json.dumps({"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}).encode()
        parts = {"config": (f"{oci}.config.v1+json", config), "layer": (f"{oci}.layer.v1.tar", layer)}
        told = {key: {"mediaType": t, "digest": _digest(d), "size": len(d)} for key, (t, d) in parts.items()}
        manifest = {"schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json"}
        whole = json.dumps({**manifest, "config": told["config"], "layers": [told["layer"]]}).encode()
        cls.content = {f"/v2/tiny/blobs/{_digest(data)}": (kind, data) for kind, data in parts.values()}
        cls.content["/v2/tiny/manifests/1"] = (manifest["mediaType"], whole)
        cls.content[f"/v2/tiny/manifests/{_digest(whole)}"] = cls.content["/v2/tiny/manifests/1"]
        cls.content["/v2/"] = ("application/json", b"{}")

    def do_GET(self) -> None:
        kind, data = self.content.get(self.path, ("", b""))
        known = self.headers.get("Authorization") == f"Basic {self.login}"
        self.send_response(401 if not known else 200 if kind else 404)
        if not known:
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(data) if known else 0))
        self.end_headers()
        if known and self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address."""
    Registry.fill()
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as listening:
        address = f"127.0.0.1:{listening.server_address[1]}"
        conf = tmp_path / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(conf))
        serving = threading.Thread(target=listening.serve_forever)
        serving.start()
        yield address
        listening.shutdown()
        serving.join()


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("python:3.11", "docker.io/library/python:3.11"),
        ("ada/tools", "docker.io/ada/tools"),
        ("registry.example/ada/tools:1", "registry.example/ada/tools:1"),
        ("127.0.0.1:5000/tools", "127.0.0.1:5000/tools"),
        ("localhost/tools:1", "localhost/tools:1"),
    ],
)
def test_a_name_without_a_registry_is_docker_hubs(name: str, whole: str) -> None:
    assert whole_name(name) == whole


async def test_an_image_is_pulled_with_the_callers_login(boxes: Boxes, registry: str, podman: Podman) -> None:
    image, login = f"{registry}/tiny:1", {"registry_username": "ada", "registry_password": "secret"}
    with pytest.raises(ImageMissing, match="could not be pulled"):
        await boxes.start(Start(image=image, memory="128m"), {}, patience_s=60)
    with pytest.raises(ImageMissing):
        await boxes.start(Start(image=image, memory="128m", pull="never", **login), {}, patience_s=60)
    both = [boxes.start(Start(image=image, memory="128m", **login), {}, patience_s=60) for _ in range(2)]
    try:
        for name in await asyncio.gather(*both):
            found = await Sandbox.attach(name)
            assert found.info.image == image
            await found.delete()
    finally:
        await podman.image_remove(image)


# ---- what there is none of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("await sandbox.archive()", "rockroll sandbox snapshot"),
        ("""await sandbox.commit("registry/image:1", "user", "word")""", "rockroll sandbox snapshot"),
    ],
)
def test_what_is_not_offered_is_refused_with_what_to_use(rock: Callable[[str], Any], line: str, told: str) -> None:
    with pytest.raises(SdkError, match=told):
        rock(line)
