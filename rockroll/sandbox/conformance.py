"""What the sessions of any sandbox must keep, as checks that run against a live one.

In: a started `Sandbox`, of whatever backend has its methods, on an image with bash and coreutils. Out: AssertionError
with a sentence for a promise that is broken; `PROMISES` lists them under the numbers of docs/sessions.md, `check` runs
all and tells which hold. Leaves starting and deleting the sandbox to the caller.

    python -m rockroll.sandbox.conformance                      # against a box of this host
    python -m rockroll.sandbox.conformance --base-url http://…  # of a server (`rockroll serve`); $ROCKROLL_TOKEN
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from rockroll.errors import SessionError, UsageError
from rockroll.sandbox.client import Sandbox
from rockroll.sandbox.node_client import close_node
from rockroll.sandbox.wire import Observation

_names = itertools.count()
PATIENCE = 30.0
"""Seconds after which a command that should have ended long ago counts as hanging."""


class Subject:
    """A fresh session of the sandbox under test. `other` makes another."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.session = f"conformance-{next(_names)}"

    def other(self) -> Subject:
        return Subject(self.sandbox)

    async def run(self, command: str | bytes, timeout: float = PATIENCE, **more: Any) -> Observation:
        return await self.sandbox.arun(command, session=self.session, timeout=timeout, **more)

    async def out(self, command: str | bytes) -> str:
        done = await self.run(command)
        assert (done.outcome, done.exit_code) == ("ok", 0), f"{command!r} ended as {done}"
        return done.stdout.decode("utf-8", "replace").strip()

    async def code(self, command: str | bytes, **more: Any) -> tuple[str, int | None]:
        done = await self.run(command, **more)
        return done.outcome, done.exit_code

    async def running(self, mark: str) -> int:
        """How many processes of the sandbox have `mark` as an argument."""
        # By /proc and not by ps: the image need not have it. The brackets keep this shell's own command line out.
        script = 'for p in /proc/[0-9]*; do tr "\\0" "\\n" <$p/cmdline 2>/dev/null | grep -qx "$1" && echo $p; done'
        seen = await self.sandbox.execute(["bash", "-c", script, "look", f"[{mark[0]}]{mark[1:]}"], timeout=PATIENCE)
        return len(seen.stdout.split())


async def state_persists(s: Subject) -> None:
    await s.run("x=5; export Y=6; cd /usr; f() { echo f$1; }; alias hi='echo alias'; shopt -s extglob; umask 027")
    await s.run("a=(1 'b c'); declare -A m=([k]=v); trap 'echo usr' USR1; set -o pipefail; exec 7</etc/passwd")
    await s.run("set -- one two; sleep 300 & (exit 3)")
    said = await s.out("echo $? $x $Y $PWD $#; f 1; hi; shopt extglob | tr -s '\\t ' ' '; umask; jobs | wc -l")
    assert said == "3 5 6 /usr 2\nf1\nalias\nextglob on\n0027\n1", f"state after a command: {said!r}"
    said = await s.out('echo "${a[1]}" ${m[k]}; kill -USR1 $$; read -r line <&7; echo ${line%%:*}; kill %1')
    assert said == "b c v\nusr\nroot", f"state after a command: {said!r}"
    assert await s.code("false | true") == ("ok", 1), "set -o pipefail was forgotten"


async def sessions_are_apart(s: Subject) -> None:
    other = s.other()
    await asyncio.gather(s.out("v=mine; cd /usr"), other.out("v=yours; cd /tmp"))
    assert (await s.out("echo $v $PWD"), await other.out("echo $v $PWD")) == ("mine /usr", "yours /tmp")
    made = s.other()
    await s.sandbox.create_session(made.session, env={"GREETING": "hello"}, cwd="/usr")
    assert await made.out("echo $GREETING $PWD") == "hello /usr"


async def any_bytes_come_out(s: Subject) -> None:
    done = await s.run(r"printf '\0\1\xff\xfe\t\r\n no newline'; printf 'e\0\r' >&2")
    assert (done.stdout, done.stderr) == (b"\0\1\xff\xfe\t\r\n no newline", b"e\0\r"), f"not the bytes: {done}"
    assert (await s.run("true")).stdout == b""


async def any_command_goes_in(s: Subject) -> None:
    assert (await s.run(b"x='" + b"y" * 1_000_000 + b"'\necho ${#x}")).stdout == b"1000000\n"
    assert (await s.run(b"printf %s 'a\tb\xff\xfe' \"\xc3\xa9\"")).stdout == b"a\tb\xff\xfe\xc3\xa9"
    assert (await s.run(b"echo one; \\\n  echo two # it's a comment\n\n")).stdout == b"one\ntwo\n"
    try:
        await s.run(b"echo a\0b")
    except UsageError:
        return
    raise AssertionError("a NUL byte in a command was not refused: bash would have dropped it")


async def output_is_capped_with_an_exact_count(s: Subject) -> None:
    done = await s.run("head -c 100000000 /dev/zero; head -c 70000 /dev/zero >&2; (exit 9)", max_output=1000)
    assert (len(done.stdout), len(done.stderr), done.exit_code) == (1000, 1000, 9)
    assert done.truncated_bytes == 100_000_000 + 70_000 - 2000, f"dropped: {done.truncated_bytes}"


async def the_exit_code_is_the_commands(s: Subject) -> None:
    for command, code in [
        ("true", 0), ("false", 1), ("(exit 42)", 42), ("return 7", 7), ("nosuchprogram", 127), ("/etc/passwd", 126),
        ("sh -c 'kill -9 $$'", 137), ("", 0), ("# comment", 0), ("kill -INT $$; echo not reached", 130),
    ]:  # fmt: skip
        assert await s.code(command) == ("ok", code), f"{command!r} did not give {code}"


async def broken_syntax_leaves_the_next_command_clean(s: Subject) -> None:
    for command in [
        "echo 'open", 'echo "open', "if true", "for x in; do", "cat <<EOF\nbody", "echo $(", "echo ${x", "((", "f() {",
        "case x in", "${nothing:?here}", "echo ${bad!!}", "echo `", "\\",
    ]:  # fmt: skip
        outcome, _ = await s.code(command)
        assert outcome == "ok", f"{command!r} ended as {outcome}"
        assert await s.out("echo clean") == "clean", f"after {command!r} the next command is not clean"


async def nothing_printed_is_a_result(s: Subject) -> None:
    done = await s.run("for i in 1 2 3; do echo \"$RANDOM 0\"; done; printf '%024d 0\\n' 7; echo $? >&2; (exit 4)")
    assert (done.outcome, done.exit_code) == ("ok", 4)


async def no_setting_fakes_or_silences_a_result(s: Subject) -> None:
    for setting in [
        "set -x", "set -v", "set -u", "set -f -C -k", "set -m", "set -o posix", "PS1='0 0> ' PS2=x PS4=y PS0=z",
        "PROMPT_COMMAND='echo prompt; echo prompt >&2'", "alias builtin=echo source=echo printf=echo .=echo",
        "source() { echo fake; }; printf() { echo fake; }; return() { echo fake; }", "IFS=01234567",
        "trap 'echo trapped' DEBUG ERR RETURN EXIT", "exec 10>/dev/null 11>/dev/null 200>/dev/null 255>&-",
        "exec >/dev/null 2>&1 </etc/passwd", "PATH=", "ulimit -n 20", "stty -echo 2>/dev/null; true",
    ]:  # fmt: skip
        session = s.other()
        assert (await session.code(setting))[0] == "ok", f"{setting!r} itself"
        done = await session.run("builtin echo out; (exit 5)")
        assert (done.outcome, done.exit_code) == ("ok", 5), f"after {setting!r}: {done}"
        assert b"out\n" in done.stdout and b"prompt" not in done.stdout + done.stderr, f"after {setting!r}: {done}"
        await s.sandbox.close_session(session.session)
    await s.run("set -e")
    assert (await s.run("false; echo not reached")).outcome == "closed", "set -e ends a shell, and that is told"


async def a_silenced_shell_is_ended_by_its_timeout(s: Subject) -> None:
    await s.run("x=kept")
    done = await s.run("builtin() { :; }", timeout=0.5)
    assert (done.outcome, done.session_restarted) == ("timeout", True), f"{done}"
    assert await s.out("echo $x") == "kept"


async def an_ended_shell_is_told_at_once_with_its_code(s: Subject) -> None:
    for command, ended in [("exit 3", ("closed", 3)), ("exec sh -c 'exit 4'", ("closed", 4))]:
        await s.run("x=old")
        begun = time.perf_counter()
        assert await s.code(command) == ended
        assert time.perf_counter() - begun < 2, f"{command!r} was noticed late"
        after = await s.run("echo [$x]")
        assert (after.stdout, after.session_restarted) == (b"[]\n", True), "a shell told to end starts afresh"
    await s.run("x=old")
    assert await s.code("kill -9 $$") == ("killed", 137)
    after = await s.run("echo [$x]")
    assert (after.stdout, after.session_restarted) == (b"[old]\n", True), "a killed shell comes back with its state"


async def input_is_at_its_end_unless_it_is_sent(s: Subject) -> None:
    assert await s.out("cat; read x || echo eof") == "eof"


async def input_arrives_in_order_and_ends(s: Subject) -> None:
    command = await s.sandbox.start_command("cat; echo over", session=s.session, stdin=True, timeout=PATIENCE)
    await command.send_input(b"a\0\xff\n")
    await command.send_input(b"z" * 200_000)
    await command.close_input()
    assert (await command.wait()).stdout == b"a\0\xff\n" + b"z" * 200_000 + b"over\n"


async def background_jobs_hold_nothing_and_live_on(s: Subject) -> None:
    begun = time.perf_counter()
    done = await s.run("(sleep 1; echo late; echo late >&2) & sleep 8801 & echo now")
    assert done.stdout == b"now\n" and time.perf_counter() - begun < 0.9, "a background job held the call"
    second = await s.run("sleep 1.3; echo second")
    assert (second.stdout, second.stderr) == (b"second\n", b""), f"another command's output: {second}"
    log = b"".join([data async for data in s.sandbox.logs()])
    assert log.count(b"late\n") == 2, "what a job prints after its command belongs in the log"
    assert (await s.run("sleep 60", timeout=0.2)).outcome == "timeout"
    assert await s.running("8801") == 1, "a later command's timeout killed an earlier command's job"


async def callers_of_one_session_take_turns(s: Subject) -> None:
    done = await asyncio.gather(*(s.run(f"n=$((n+1)); sleep 0.01; echo $n {i}") for i in range(6)))
    assert [each.stdout.decode() for each in done] == [f"{i + 1} {i}\n" for i in range(6)]


async def output_streams_while_a_command_runs(s: Subject) -> None:
    command = await s.sandbox.start_command(
        "echo one; read x; echo two >&2", session=s.session, stdin=True, timeout=PATIENCE
    )
    seen = []
    async for chunk in command.output():
        seen.append((chunk.offset, chunk.stream, chunk.data))
        if len(seen) == 1:  # the command cannot end before this is sent
            await command.send_input("\n")
    assert seen == [(0, "stdout", b"one\n"), (4, "stderr", b"two\n")], f"{seen}"


async def signals_reach_what_a_command_started(s: Subject) -> None:
    line = "bash -c 'trap \"echo got it; exit 5\" TERM; echo ready; sleep 60 & wait'"
    command = await s.sandbox.start_command(line, session=s.session, timeout=PATIENCE)
    async for _ in command.output():
        await command.send_signal("TERM")
        break
    done = await command.wait()
    assert (done.stdout, done.exit_code) == (b"ready\ngot it\n", 5), f"{done}"


ESCAPES = {
    "a daemon": "setsid sh -c 'setsid sleep MARK & setsid sleep MARK &' </dev/null >/dev/null 2>&1; sleep 60",
    "a double fork": "( ( sleep MARK & ) & ) ; sleep 60",
    "ignored signals": "sh -c 'trap \"\" INT TERM HUP QUIT; sleep MARK; sleep MARK'; sleep 60",
    "a stopped process": "sleep MARK & kill -STOP $!; sleep 60",
    "a busy loop": "while :; do :; done & exec 3< <(sleep MARK); while :; do :; done",
    "a fork bomb": "b() { b | b & }; b; sleep MARK",
}


async def a_timeout_leaves_no_process(s: Subject) -> None:
    unbounded = "pids" in s.sandbox.info.unenforced  # then a fork bomb is the host's affair, not only its box's
    for number, (what, line) in enumerate(ESCAPES.items()):
        if unbounded and what == "a fork bomb":
            continue
        mark = f"771{number}"
        outcome, code = await s.code(line.replace("MARK", mark), timeout=0.5)
        assert (outcome, code) == ("timeout", None), f"{what}: {outcome}"
        assert await s.running(mark) == 0, f"{what} outlived its command's timeout"
        assert await s.out("echo usable") == "usable", f"after {what}"


async def a_timeout_keeps_what_was_printed_and_the_shell(s: Subject) -> None:
    await s.run("x=1")
    done = await s.run("x=2; echo begun; sleep 100; echo not reached", timeout=0.3)
    assert (done.outcome, done.exit_code, done.stdout, done.session_restarted) == ("timeout", None, b"begun\n", False)
    assert await s.out("echo $x") == "2"


async def a_shell_that_resists_is_replaced_with_its_state(s: Subject) -> None:
    for command in ["trap '' INT; while :; do :; done", "kill -STOP $$", "trap '' INT; read <>/dev/zero -d x"]:
        await s.run("x=5; f() { echo f; }; cd /usr; alias q='echo quick'; set -u; shopt -s nullglob; umask 077")
        done = await s.run(f"x=6; {command}", timeout=0.5)
        assert (done.outcome, done.session_restarted) == ("timeout", True), f"{command!r}: {done}"
        said = await s.out("echo $x $PWD; f; q; umask; shopt -q nullglob && echo ${-//[^u]}")
        assert said == "5 /usr\nf\nquick\n0077\nu", f"after {command!r}: {said!r}"


async def cancelling_a_call_kills_its_command(s: Subject) -> None:
    await s.run("x=1")
    call = asyncio.ensure_future(s.run("setsid sleep 8803 & sleep 8803"))
    while not await s.running("8803"):
        await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert await s.out("echo $x") == "1"
    assert await s.running("8803") == 0, "a cancelled call's process lives on"


async def closing_a_session_ends_all_it_started(s: Subject) -> None:
    await s.run("sleep 8804 & setsid sleep 8804 &")
    await s.run("true")
    call = asyncio.ensure_future(s.run("sleep 8804"))
    while await s.running("8804") < 3:
        await asyncio.sleep(0.01)
    await s.sandbox.close_session(s.session)
    assert (await call).outcome == "killed"
    assert await s.running("8804") == 0, "a closed session's process lives on"
    try:
        await s.sandbox.close_session(s.session)
    except SessionError:
        return
    raise AssertionError("a session that is not there was closed without a word")


async def a_programs_exit_code_comes_from_outside(s: Subject) -> None:
    for argv, code in [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 137),
        (["nosuch"], 127),
    ]:
        done = await s.sandbox.execute(argv, timeout=PATIENCE)
        assert (done.outcome, done.exit_code) == ("ok", code), f"{argv}: {done}"
    done = await s.sandbox.execute(["sh", "-c", "echo begun; setsid sleep 8805 & sleep 8805"], timeout=0.5)
    assert (done.outcome, done.exit_code, done.stdout) == ("timeout", None, b"begun\n"), f"{done}"
    assert await s.running("8805") == 0, "a program's child outlived its timeout"


async def a_command_outlives_its_client_and_is_read_on_from_an_offset(s: Subject) -> None:
    first = await s.sandbox.start_command("echo one; sleep 0.3; echo two; (exit 6)", session=s.session)
    again = s.sandbox.command(first.id)  # as another client does, from the id alone
    assert b"".join([chunk.data async for chunk in again.output(2)]) == b"e\ntwo\n"
    done = await again.wait()
    assert (done.stdout, done.exit_code) == (b"one\ntwo\n", 6)


async def a_command_id_sent_twice_runs_once(s: Subject) -> None:
    id = f"{s.session}-once"
    calls = [s.run("n=$((n+1)); sleep 0.1; echo $n", command_id=id) for _ in range(3)]
    assert [done.stdout for done in await asyncio.gather(*calls)] == [b"1\n"] * 3
    assert await s.out("echo $n") == "1"
    try:
        await s.run("echo other", command_id=id)
    except UsageError:
        return
    raise AssertionError("an id was taken for two commands")


class Promise(NamedTuple):
    """number: as in docs/sessions.md."""

    number: int
    check: Callable[[Subject], Awaitable[None]]

    @property
    def name(self) -> str:
        return self.check.__name__


PROMISES = [
    Promise(number, check)
    for number, check in enumerate(
        [
            state_persists,
            sessions_are_apart,
            any_bytes_come_out,
            any_command_goes_in,
            output_is_capped_with_an_exact_count,
            the_exit_code_is_the_commands,
            broken_syntax_leaves_the_next_command_clean,
            nothing_printed_is_a_result,
            no_setting_fakes_or_silences_a_result,
            a_silenced_shell_is_ended_by_its_timeout,
            an_ended_shell_is_told_at_once_with_its_code,
            input_is_at_its_end_unless_it_is_sent,
            input_arrives_in_order_and_ends,
            background_jobs_hold_nothing_and_live_on,
            callers_of_one_session_take_turns,
            output_streams_while_a_command_runs,
            signals_reach_what_a_command_started,
            a_timeout_leaves_no_process,
            a_timeout_keeps_what_was_printed_and_the_shell,
            a_shell_that_resists_is_replaced_with_its_state,
            cancelling_a_call_kills_its_command,
            closing_a_session_ends_all_it_started,
            a_programs_exit_code_comes_from_outside,
            a_command_outlives_its_client_and_is_read_on_from_an_offset,
            a_command_id_sent_twice_runs_once,
        ],
        start=1,
    )
]


async def check(sandbox: Sandbox) -> dict[str, str]:
    """Each promise's name, and "" where it holds, else what was seen."""
    found: dict[str, str] = {}
    for promise in PROMISES:
        try:
            await promise.check(Subject(sandbox))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the promise is not kept
            found[promise.name] = f"{type(error).__name__}: {error}"
        else:
            found[promise.name] = ""
    return found


async def _main(base_url: str | None) -> int:
    async with Sandbox(base_url=base_url) as sandbox:
        found = await check(sandbox)
    await close_node()
    for promise in PROMISES:
        broken = found[promise.name]
        print(f"{promise.number:3}  {'broken' if broken else 'kept  '}  {promise.name.replace('_', ' ')}")
        if broken:
            print(f"     {broken}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m rockroll.sandbox.conformance", description="Checks what the sessions of a sandbox must keep."
    )
    parser.add_argument("--base-url", help="a server's, as `rockroll serve` prints it; else this host's own node")
    sys.exit(asyncio.run(_main(parser.parse_args().base_url)))
