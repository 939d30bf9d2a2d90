"""What a session promises."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from rockroll.errors import SessionError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.exec import shell, stream
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import IS_ROOT, Lab, needs_cgroups

pytestmark = pytest.mark.asyncio(loop_scope="module")
_names = itertools.count()


@pytest.fixture
def s(shared: Lab) -> Session:
    """A fresh session of the shared box."""
    return Session(shared, f"s{next(_names)}")


class Session:
    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name

    async def run(self, command: str | bytes, timeout: float | None = 20, **more: object) -> wire.Observation:
        return await self.lab.run(command, timeout, session=self.name, **more)

    async def out(self, command: str) -> str:
        return await self.lab.out(command, session=self.name)


# ---- state ---------------------------------------------------------------------------------------------------------


async def test_state_stays_for_the_next_command(s: Session) -> None:
    await s.run("x=5; export Y=6; cd /usr; f() { echo f$1; }; alias hi='echo alias'; shopt -s extglob; umask 027")
    await s.run("arr=(a 'b c'); declare -A map=([k]=v); trap 'echo bye' USR1; set -o pipefail; exec 7</etc/passwd")
    assert (
        await s.out("echo $x $Y $PWD; f 1; hi; shopt extglob; umask")
        == "5 6 /usr\nf1\nalias\nextglob        \ton\n0027"
    )
    assert await s.out('echo "${arr[1]}" ${map[k]}; trap -p USR1; read -r line <&7; echo ${line%%:*}') == (
        "b c v\ntrap -- 'echo bye' SIGUSR1\nroot"
    )
    assert (await s.run("false | true")).exit_code == 1


async def test_the_last_status_and_the_arguments_stay_for_the_next_command(s: Session) -> None:
    await s.run("set -- one two; (exit 3)")
    assert await s.out('echo $? "$@"') == "3 one two"


async def test_sessions_do_not_share_state(shared: Lab) -> None:
    await shared.out("v=one", session="one")
    assert await shared.out("echo [$v]", session="two") == "[]"


async def test_a_session_opens_with_its_environment_and_folder(shared: Lab) -> None:
    name = await shared.new_session("made", env={"GREETING": "hello"}, cwd="/srv")
    assert await shared.out("echo $GREETING $PWD", session=name) == "hello /srv"
    with pytest.raises(SessionError, match="exists"):
        await shared.new_session("made")
    with pytest.raises(SessionError, match="/nowhere"):
        await shared.new_session("lost", cwd="/nowhere")
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session="made"))
    with pytest.raises(SessionError, match="no session"):
        await shared.call("session.close", wire.SessionSpec(id=shared.id, session="made"))


# ---- output --------------------------------------------------------------------------------------------------------


async def test_output_is_exact_bytes_with_stderr_apart(s: Session) -> None:
    done = await s.run(r"printf '\0\1\xff\r\n no newline'; printf 'e\0' >&2")
    assert (done.stdout, done.stderr) == (b"\0\1\xff\r\n no newline", b"e\0")
    assert (await s.run("true")).stdout == b""


async def test_a_megabyte_script_runs(s: Session) -> None:
    done = await s.run(b"x='" + b"y" * 1_000_000 + b"'\necho ${#x}")
    assert done.stdout == b"1000000\n"


async def test_output_over_the_limit_is_counted_and_never_blocks(s: Session) -> None:
    done = await s.run("head -c 3000000 /dev/zero; head -c 70000 /dev/zero >&2; exit_code=9; (exit 9)", max_output=1000)
    assert (len(done.stdout), len(done.stderr), done.exit_code) == (1000, 1000, 9)
    assert done.truncated_bytes == 3_000_000 + 70_000 - 2000


async def test_sixteen_megabytes_arrive_whole(s: Session) -> None:
    done = await s.run("head -c 16777216 /dev/zero | tr '\\0' z", max_output=1 << 30)
    assert done.stdout == b"z" * (1 << 24)


async def test_output_goes_to_dev_stdout_too(s: Session) -> None:
    done = await s.run("echo a >/dev/stdout; echo b | tee /dev/stderr")
    assert (done.stdout, done.stderr) == (b"a\nb\n", b"b\n")


async def test_a_background_job_holds_neither_the_call_nor_the_next_ones_output(s: Session) -> None:
    begun = time.perf_counter()
    first = await s.run("(sleep 0.3; echo late; echo late >&2) & echo now")
    assert (first.stdout, time.perf_counter() - begun < 0.25) == (b"now\n", True)
    second = await s.run("sleep 0.5; echo second")
    assert (second.stdout, second.stderr) == (b"second\n", b"")
    log = b"".join([chunk.data async for chunk in s.lab.handlers["logs"](wire.Logs(id=s.lab.id), s.lab.peer)])
    assert log.splitlines().count(b"late") == 2 and b"$ sleep 0.5; echo second\nsecond\n" in log


async def test_a_background_job_lives_on(s: Session) -> None:
    # Without cgroups a job that is younger than a clock tick counts as the next command's (cgroup.TreeScope).
    await s.run("sleep 321 & p=$!" if IS_ROOT else "sleep 321 & p=$!; sleep 0.03")
    assert (await s.run("sleep 9", timeout=0.1)).outcome == "timeout"
    assert await s.out("kill -0 $p && echo alive; kill $p") == "alive"


async def test_stdin_is_at_its_end(s: Session) -> None:
    assert await s.out("cat; read x || echo eof; python3 -c 'print(input)' | head -c 9") == "eof\n<built-in"


# ---- exit codes and ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("true", 0),
        ("false", 1),
        ("(exit 42)", 42),
        ("return 7", 7),
        ("nosuchprogram", 127),
        ("/etc/passwd", 126),
        ("sh -c 'kill -9 $$'", 137),
        ("echo 'unterminated", 2),
        ("if true", 2),
        ("for x in; do", 2),
        ("cat <<EOF", 0),
        ("${nothing:?here}", 1),
        ("echo ${bad!!}", 1),
        ("echo $((1/0))", 1),
        ("kill -INT $$; echo not reached", 130),
        ("", 0),
        ("# only a comment", 0),
        ("!!", 127),
    ],
)
async def test_exit_codes_are_true_and_the_session_goes_on(shared: Lab, command: str, code: int) -> None:
    done = await shared.run(command, session="codes")
    assert (done.outcome, done.exit_code) == ("ok", code), done
    assert await shared.out("echo still here", session="codes") == "still here"


@pytest.mark.parametrize("command", ["exit 3", "set -e; (exit 3); echo no", "exec sh -c 'exit 3'", "kill -USR1 $$"])
async def test_a_shell_that_ends_is_closed_and_the_next_command_gets_a_new_one(s: Session, command: str) -> None:
    await s.run("x=old")
    done = await s.run(command)
    if command.startswith("kill"):
        assert (done.outcome, done.exit_code) == ("killed", 128 + 10)
    else:
        assert (done.outcome, done.exit_code) == ("closed", 3)
    after = await s.run("echo [$x]")
    assert after.session_restarted and after.outcome == "ok"
    # what was told to end starts afresh; what was killed goes on with the saved state
    assert after.stdout == (b"[old]\n" if command.startswith("kill") else b"[]\n")
    assert not (await s.run("true")).session_restarted


@pytest.mark.parametrize(
    "setting",
    [
        "set -x",
        "set -v",
        "set -u",
        "set -f -k -C",
        "set -m",
        "set -o posix",
        "PS1='0 0> ' PS2=x PS4=y",
        "PROMPT_COMMAND='echo prompt; echo prompt >&2'",
        "alias builtin=echo source=echo printf=echo",
        "source() { echo fake; }; printf() { echo fake; }",
        "IFS=01234567",
        "trap 'echo trapped' DEBUG ERR RETURN EXIT",
        "exec 10>/dev/null 11>/dev/null 200>/dev/null 255>&-",
        "ulimit -n 20",
        "exec >/dev/null 2>&1 </etc/passwd",
        "PATH=",
        "history -c; set -o history",
    ],
)
async def test_no_setting_made_by_accident_fakes_or_silences_a_result(shared: Lab, setting: str) -> None:
    name = f"set-{next(_names)}"
    first = await shared.run(setting, session=name)
    assert first.outcome == "ok"
    done = await shared.run("builtin echo out; (exit 5)", session=name)
    assert (done.outcome, done.exit_code) == ("ok", 5), done
    assert b"out\n" in done.stdout and b"prompt" not in done.stdout + done.stderr
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session=name))


async def test_nothing_printed_is_a_result(s: Session) -> None:
    done = await s.run("for i in 1 2 3; do echo \"$RANDOM 0\"; done; printf '%024d 0\\n' 7; (exit 4)")
    assert (done.outcome, done.exit_code) == ("ok", 4)


async def test_a_silenced_shell_is_replaced_at_the_timeout(s: Session) -> None:
    await s.run("x=kept")
    done = await s.run("builtin() { :; }", timeout=0.3)
    assert (done.outcome, done.session_restarted) == ("timeout", True)
    assert await s.out("echo $x") == "kept"


async def test_a_shell_that_ended_while_idle_is_brought_back(s: Session) -> None:
    await s.run("x=5; TMOUT=1")
    await asyncio.sleep(1.3)
    done = await s.run("echo $x")
    assert (done.outcome, done.stdout, done.session_restarted) == ("ok", b"5\n", True)


async def test_a_nul_byte_in_a_command_is_refused(s: Session) -> None:
    with pytest.raises(UsageError, match="NUL"):
        await s.run(b"echo a\0b")


# ---- timeouts ------------------------------------------------------------------------------------------------------


async def test_a_timeout_keeps_partial_output_and_the_shell(s: Session) -> None:
    await s.run("x=1")
    begun = time.perf_counter()
    done = await s.run("x=2; echo begun; sleep 100; echo not reached", timeout=0.2)
    assert (done.outcome, done.exit_code, done.stdout, done.session_restarted) == ("timeout", None, b"begun\n", False)
    assert time.perf_counter() - begun < 1
    assert await s.out("echo $x") == "2"


@pytest.mark.parametrize(
    "command",
    [
        "while :; do :; done",
        "read x < <(sleep 99)",
        "wait $(sleep 99)",
        # Without cgroups what it starts is found in /proc, which may take longer than the shell is given.
        pytest.param("while :; do sleep 0.01; done", marks=needs_cgroups),
    ],
)
async def test_a_loop_is_interrupted(s: Session, command: str) -> None:
    await s.run("x=1")
    done = await s.run(command, timeout=0.3)
    assert (done.outcome, done.session_restarted) == ("timeout", False)
    assert await s.out("echo $x") == "1"


@pytest.mark.parametrize(
    "command", ["trap '' INT; while :; do :; done", "kill -STOP $$", "trap '' INT; read <>/dev/zero -d x"]
)
async def test_a_shell_that_resists_is_replaced_with_the_saved_state(s: Session, command: str) -> None:
    await s.run("x=5; f() { echo \"f  $1\"; }; cd /srv; alias q='echo quick'; set -u; shopt -s nullglob; umask 077")
    await s.run("declare -r FIXED=1; declare -a list=('a b' $'c\\nd'); trap 'echo usr' USR1")
    done = await s.run(f"x=6; {command}", timeout=0.4)
    assert (done.outcome, done.session_restarted) == ("timeout", True)
    after = await s.run('echo $x $PWD $FIXED "${list[1]}"; f y; q; umask; shopt -q nullglob; kill -USR1 $$; echo $-')
    assert after.stdout.decode().splitlines()[:-1] == ["5 /srv 1 c", "d", "f  y", "quick", "0077", "usr"]
    assert "u" in after.stdout.decode().splitlines()[-1] and not after.session_restarted


async def test_a_megabyte_of_state_is_carried_over(s: Session) -> None:
    await s.run("big=$(head -c 1000000 /dev/zero | tr '\\0' b)")
    await s.run("kill -STOP $$", timeout=0.4)
    assert await s.out("echo ${#big}") == "1000000"


# ---- callers -------------------------------------------------------------------------------------------------------


async def test_two_callers_of_one_session_take_turns(s: Session) -> None:
    done = await asyncio.gather(*(s.run(f"n=$((n+1)); sleep 0.01; echo $n {i}") for i in range(8)))
    assert [o.stdout.decode() for o in done] == [f"{i + 1} {i}\n" for i in range(8)]


async def test_a_cancelled_call_kills_its_command_and_the_session_goes_on(s: Session) -> None:
    await s.run("x=1")
    call = asyncio.create_task(s.run("sleep 4321"))
    while not s.lab.named("4321"):
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await s.out("echo $x") == "1"
    assert not s.lab.named("4321")


async def test_a_cancelled_call_in_the_queue_never_runs(s: Session) -> None:
    first = asyncio.create_task(s.run("sleep 0.2"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(s.run("touch /tmp/ran"))
    await asyncio.sleep(0.05)
    second.cancel()
    await first
    assert (await s.run("test -e /tmp/ran")).exit_code == 1


async def test_closing_a_session_kills_what_it_runs(shared: Lab) -> None:
    running = asyncio.create_task(shared.run("sleep 765", session="closing"))
    while not shared.named("765"):
        await asyncio.sleep(0.01)
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session="closing"))
    done = await running
    assert (done.outcome, shared.named("765")) == ("killed", [])


async def test_closing_a_session_ends_its_background_jobs_and_no_other(shared: Lab) -> None:
    await shared.run("sleep 7651 & setsid sleep 7652 &", session="closing")
    await shared.run("sleep 7653 &", session="other")
    await shared.run("true", session="closing")
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session="closing"))
    assert (shared.named("7651"), shared.named("7652")) == ([], [])
    assert shared.named("7653")
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session="other"))
    assert not shared.named("7653")


async def test_a_session_that_two_close_at_once_gives_its_scope_back_once(shared: Lab) -> None:
    await shared.run("true", session="twice")
    ref = wire.SessionSpec(id=shared.id, session="twice")
    await asyncio.gather(*(shared.call("session.close", ref) for _ in range(2)))
    await shared.run("sleep 7661 & true", session="first")
    await shared.run("sleep 7662", session="second", timeout=0.1)
    assert shared.named("7661"), "another session's timeout has killed it"
    scopes = [shared.box.sessions.open[name].scope for name in ("first", "second")]
    assert scopes[0].arguments != scopes[1].arguments or scopes[0].mark != scopes[1].mark
    for name in ("first", "second"):
        await shared.call("session.close", wire.SessionSpec(id=shared.id, session=name))


async def test_a_shell_whose_input_somebody_has_filled_is_killed_and_the_next_one_has_its_state(s: Session) -> None:
    await s.run("x=7")
    session = s.lab.box.sessions.open[s.name]
    await s.lab.until_saved(b"x=", s.name)
    bash = session._shell
    assert bash is not None
    os.kill(bash.pid, signal.SIGSTOP)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(bash._typing, b" " * 4096)
    done = await s.run("echo not reached")
    assert (done.outcome, done.exit_code, done.stdout) == ("killed", 137, b"")
    assert await s.out("echo $x") == "7"


async def test_a_dying_shell_whose_output_somebody_else_reads_is_told_at_once(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.run("true")
    monkeypatch.setattr(stream, "_waiting", lambda fd: 1000)  # as it was before the thief in the box read it
    async with asyncio.timeout(10):
        done = await s.run("sleep 60 & kill -9 $$", timeout=None)
    assert (done.outcome, done.exit_code) == ("killed", 137)


async def test_a_shell_that_does_not_get_through_its_beginning_is_not_left_running(
    s: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.run("x=1")
    await s.lab.until_saved(b"x=", s.name)
    monkeypatch.setattr(shell, "OPEN_TIMEOUT_S", 0.5)
    first = s.lab.box.sessions.open[s.name]._shell
    assert first is not None
    first.told.state = b"# \nwhile :; do :; done\n"
    os.kill(first.pid, signal.SIGKILL)
    await first.ended()
    with pytest.raises(SessionError, match="bash did not answer"):
        await s.run("true")
    async with asyncio.timeout(2):
        while s.lab.box.sessions.open[s.name].scope.pids():
            await asyncio.sleep(0.01)
    await s.lab.call("session.close", wire.SessionSpec(id=s.lab.id, session=s.name))


@needs_cgroups
async def test_a_number_that_is_no_longer_the_scopes_is_not_moved_into_the_box(shared: Lab) -> None:
    scope = shared.box.hull.running_cgroup.scope(keeps=True)
    mine = Path("/proc/self/cgroup").read_text()
    await asyncio.to_thread(scope.release, [os.getpid()])
    assert Path("/proc/self/cgroup").read_text() == mine
    shared.box.hull.give_back(scope)


async def test_a_session_leaves_no_descriptor_and_no_folder(shared: Lab) -> None:
    await shared.run("true", session="warm")
    folders = set((shared.box.hull.folder / "s").iterdir())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        await shared.run("sleep 0.2 & echo x", session="leak")
        await shared.run("exit 1", session="leak")
    await shared.run("true", session="leak")
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session="leak"))
    await asyncio.sleep(0.05)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert set((shared.box.hull.folder / "s").iterdir()) == folders


async def test_a_box_without_bash_says_so_and_execute_still_works(host: SandboxHost, lab: Lab) -> None:
    await lab.execute("mv", "/usr/bin/bash", "/usr/bin/hidden")
    with pytest.raises(SessionError, match="bash: not found"):
        await lab.run("true")
    assert (await lab.execute("echo", "fine")).stdout == b"fine\n"


async def test_a_function_hidden_behind_a_plain_word_is_saved_all_the_same(s: Session) -> None:
    await asyncio.gather(s.run("ls() { x=$((x+1)); }"), s.run("ls"))  # the second comes before the first's state
    await s.run("ls")
    await s.run("kill -STOP $$", timeout=0.4)
    assert await s.out("echo $x; true; ls; echo $x") == "2\n3"


async def test_the_saved_state_is_the_last_commands_alone_however_fast_they_come(lab: Lab) -> None:
    for _ in range(30):
        session = await lab.new_session("fast")
        await lab.run("shopt -s extglob; f() { :; }", session=session)
        (found,) = lab.box.sessions.open.values()
        async with asyncio.timeout(5):
            while b"\nf ()" not in (state := found.saved()[0]):
                await asyncio.sleep(0.005)
        assert b":extglob:" in state.partition(b"\n")[0]
        assert state.count(b"\ndeclare -r BASHOPTS") == 1
        await lab.call("session.close", wire.SessionSpec(id=lab.id, session=session))


async def test_what_a_session_had_unset_stays_unset_in_its_next_shell(s: Session) -> None:
    await s.run("unset OPENAI_API_KEY; export -n OPENAI_BASE_URL; export MINE=1")
    await s.run("kill -STOP $$", timeout=0.4)
    assert await s.out("echo [$OPENAI_API_KEY] $MINE; env | grep -c '^OPENAI_BASE_URL=' || true") == "[] 1\n0"


async def test_a_flood_of_state_harms_its_own_session_only(shared: Lab) -> None:
    await shared.run("echo", session="flood")
    (place,) = [p for p in (shared.box.hull.folder / "s").iterdir() if p.name == str(shared.box.hull.shells)]
    flood = f"head -c 400000000 /dev/zero >/dev/rr/{place.name}/state & x=1"
    running = asyncio.create_task(shared.run(flood, session="flood", timeout=2))
    worst = 0.0
    while not running.done():
        begun = time.perf_counter()
        await shared.run("true", session="beside")
        worst = max(worst, time.perf_counter() - begun)
    assert worst < 1
    await shared.call("session.close", wire.SessionSpec(id=shared.id, session="flood"))


async def test_closing_a_session_while_its_shell_opens_ends_it(shared: Lab) -> None:
    for _ in range(5):
        running = asyncio.create_task(shared.run("sleep 7666", session="hasty", timeout=10))
        await asyncio.sleep(0)
        await asyncio.wait_for(shared.call("session.close", wire.SessionSpec(id=shared.id, session="hasty")), 5)
        assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], SessionError)
        assert not shared.named("7666")


@needs_cgroups
async def test_sessions_of_a_recycled_box_leave_no_descriptor(lab: Lab) -> None:
    async def use() -> int:
        await lab.run("true")
        await lab.run("true", session="other")
        assert (await lab.recycle()).ok
        return len(list(Path("/proc/self/fd").iterdir()))

    before = await use()
    assert max([await use() for _ in range(3)]) <= before
    assert lab.box.hull.cgroup is not None and lab.box.hull.cgroup._made <= 3


@needs_cgroups
async def test_time_in_which_a_box_stands_still_does_not_count(lab: Lab) -> None:
    await lab.run("x=kept")
    running = asyncio.create_task(lab.run("sleep 0.4; echo done", timeout=0.8))
    await asyncio.sleep(0.1)
    async with lab.box.hull.hold.frozen(lab.box.init):
        await asyncio.sleep(1)
    done = await running
    assert (done.outcome, done.stdout, done.session_restarted) == ("ok", b"done\n", False)
    late = await lab.run("sleep 60", timeout=0.2)
    assert (late.outcome, late.session_restarted) == ("timeout", False)
