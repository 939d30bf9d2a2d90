"""What a timeout, a cancellation and an out-of-memory kill promise about everything a command has started."""

from __future__ import annotations

import asyncio
import time

import pytest

from rockroll.sandbox import wire
from rockroll.sandbox.container import cgroup
from rockroll.sandbox.container.cgroup import BoxCgroup, TreeScope
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab, needs_cgroups

pytestmark = pytest.mark.asyncio(loop_scope="module")

ESCAPES = {
    "a child": "sleep 1234",
    "in the background": "sleep 1234 & sleep 1234",
    "setsid": "setsid -f sleep 1234; sleep 5",
    "double fork": "( (setsid sleep 1234 &) & ); sleep 5",
    "nohup, deaf to SIGTERM": "nohup sh -c 'trap \"\" TERM INT HUP; sleep 1234; :' & sleep 5",
    "deaf to SIGINT, in front": "sh -c 'trap \"\" INT; sleep 1234; :'",
    "without environment": "env -i setsid -f sleep 1234; sleep 5",
    "stopped": "sleep 1234 & kill -STOP $!; sleep 5",
    "busy loops": "for i in 1 2 3; do (while :; do :; done; : 1234) & done; sleep 5",
    "its shell deaf too": "trap '' INT; setsid -f sleep 1234; while :; do :; done",
}


@needs_cgroups
@pytest.mark.parametrize("command", ESCAPES.values(), ids=ESCAPES.keys())
async def test_nothing_that_a_timed_out_command_started_survives(shared: Lab, command: str) -> None:
    await shared.run("true", session="scope")
    before = set(shared.processes())
    done = await shared.run(command, timeout=0.2, session="scope")
    assert done.outcome == "timeout"
    after = set(shared.processes())
    assert len(after) == len(before) and not shared.named("1234")
    assert await shared.out("echo usable", session="scope") == "usable"


@needs_cgroups
async def test_a_fork_bomb_ends_with_its_command(lab: Lab) -> None:
    await lab.run("x=1")
    begun = time.perf_counter()
    done = await lab.run("b() { b | b & }; b; sleep 9", timeout=0.3)
    assert (done.outcome, len(lab.processes())) == ("timeout", 1)
    assert time.perf_counter() - begun < 5
    assert (await lab.run("echo fine")).stdout == b"fine\n"


async def test_a_timeout_in_one_session_leaves_the_others_alone(lab: Lab) -> None:
    other = asyncio.create_task(lab.run("sleep 1; echo done", session="other"))
    daemon = await lab.run("setsid -f sleep 987 >/dev/null 2>&1", session="daemon")
    assert daemon.outcome == "ok"
    assert (await lab.run("sleep 9", timeout=0.2)).outcome == "timeout"
    assert (await other).stdout == b"done\n"
    assert len(lab.named("987")) == 1


async def test_a_cancelled_call_kills_daemons_too(lab: Lab) -> None:
    call = asyncio.create_task(lab.run("setsid -f sleep 654; sleep 654"))
    while len(lab.named("654")) < 2:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await lab.until_none("654")


async def test_execute_kills_all_it_started_at_its_timeout(lab: Lab) -> None:
    done = await lab.execute("sh", "-c", "echo begun; setsid -f sleep 432; sleep 432", timeout=0.3)
    assert (done.outcome, done.exit_code, done.stdout) == ("timeout", None, b"begun\n")
    assert not lab.named("432")


@needs_cgroups
async def test_a_command_that_dies_of_memory_is_oom(lab: Lab) -> None:
    eat = "python3 -c 'x = bytearray(400 << 20)'"
    assert (await lab.run(eat)).outcome == "oom"
    assert (await lab.execute("python3", "-c", "x = bytearray(400 << 20)")).outcome == "oom"
    done = await lab.run("x=$(head -c 300000000 /dev/zero | tr '\\0' x)", timeout=60)
    assert (done.outcome, done.exit_code) == ("oom", 137)
    assert (await lab.run("sh -c 'kill -9 $$'")).outcome == "ok"
    assert (await lab.run("echo fine")).stdout == b"fine\n"
    assert (await lab.call("sandbox.stats", wire.Ref(id=lab.id))).oom_kills >= 3


@needs_cgroups
async def test_a_kill_for_memory_that_was_got_over_is_not_a_later_command_s(lab: Lab) -> None:
    eat = "python3 -c 'x = bytearray(400 << 20)'"
    got_over = await lab.run(f"{eat}; true")
    assert (got_over.outcome, got_over.exit_code, got_over.events.get("oom_kills")) == ("ok", 0, 1)
    done = await lab.run("sh -c 'kill -9 $$'")
    assert (done.outcome, done.exit_code) == ("ok", 137)
    assert (await lab.run(f"{eat}; true")).outcome == "ok"
    program = await lab.execute("sh", "-c", "kill -9 $$")
    assert (program.outcome, program.exit_code) == ("ok", 137)
    assert (await lab.run(f"{eat}; true")).outcome == "ok"
    shell = await lab.run("kill -9 $$")
    assert (shell.outcome, shell.exit_code) == ("killed", 137)


async def test_without_cgroups_the_tree_and_the_mark_find_what_was_started(host: SandboxHost) -> None:
    lab = await Lab(host).up()
    try:
        lab.box.hull.cgroup = BoxCgroup(lab.box.init, lambda _: False)
        assert isinstance(lab.box.hull.cgroup.scope(), TreeScope)
        await lab.run("sleep 555 & x=1")
        await asyncio.sleep(0.03)  # age is known to a clock tick
        done = await lab.run("setsid -f sleep 333; (sleep 333 &); sleep 333", timeout=0.3)
        assert (done.outcome, done.session_restarted) == ("timeout", False)
        assert not lab.named("333")
        assert len(lab.named("555")) == 1  # an earlier command's background job
        assert (await lab.execute("sh", "-c", "setsid -f sleep 222; sleep 222", timeout=0.3)).outcome == "timeout"
        assert not lab.named("222")
        assert await lab.out("echo $x") == "1"
    finally:
        await lab.call("sandbox.delete", wire.Ref(id=lab.id))


async def test_a_signal_never_goes_to_a_process_that_is_no_longer_found() -> None:
    child = await asyncio.create_subprocess_exec("sleep", "30")
    answers = iter([[child.pid], []])
    assert cgroup.send(lambda: next(answers), (), 9) == 1
    assert child.returncode is None
    answers = iter([[child.pid], [child.pid]])
    cgroup.send(lambda: next(answers), (), 9)
    assert await child.wait() == -9
