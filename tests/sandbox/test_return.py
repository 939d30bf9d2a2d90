"""Death and return: every death has its cause, told to whoever waits and kept; what comes back says what it lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rockroll import home
from rockroll.errors import HostError, SandboxError, SandboxLost, SandboxNotFound, SessionError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.exec import saved
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import LIMITS_HOLD, Lab

needs_limits = pytest.mark.skipif(not LIMITS_HOLD, reason="this host limits no memory for this user")
pytestmark = pytest.mark.asyncio(loop_scope="module")


def ref(lab: Lab) -> wire.Ref:
    return wire.Ref(id=lab.id)


async def until_dead(lab: Lab) -> wire.SandboxInfo:
    async with asyncio.timeout(5):
        while (info := await lab.call("sandbox.get", ref(lab))).state != "exited" or info.cause is None:
            await asyncio.sleep(0.005)
    return info


async def restore(lab: Lab, **more: Any) -> wire.Restored:
    return await lab.call("sandbox.restore", wire.Restore(id=lab.id, **more))


async def working(lab: Lab, word: str) -> asyncio.Task[wire.Observation]:
    """A command that runs until something ends it."""
    running = asyncio.create_task(lab.run(f"sleep {word}", 60))
    while not lab.named(word):
        await asyncio.sleep(0.005)
    return running


# ---- causes --------------------------------------------------------------------------------------------------------


async def test_a_killed_init_is_told_to_the_waiting_call_and_kept(lab: Lab) -> None:
    running = await working(lab, "600")
    os.kill(lab.box.init, signal.SIGKILL)
    seen = await asyncio.wait_for(running, 5)
    assert (seen.outcome, seen.cause, seen.exit_code) == ("lost", "killed", None)
    assert (await until_dead(lab)).cause == "killed"
    with pytest.raises(SandboxLost, match=r"exited.*killed by a signal.*restore") as told:
        await lab.run("true")
    assert told.value.fields["cause"] == "killed"


async def test_an_init_that_ends_by_itself_is_exited(lab: Lab) -> None:
    running = await working(lab, "601")
    os.kill(lab.box.init, signal.SIGTERM)
    assert (await asyncio.wait_for(running, 5)).cause == "exited"


@needs_limits
async def test_memory_that_takes_init_is_oom(lab: Lab) -> None:
    # Many small eaters, and init is what the kernel would rather kill than any of them.
    Path(f"/proc/{lab.box.init}/oom_score_adj").write_text("1000")
    eat = "import os, time\nwhile os.fork(): time.sleep(0.02)\nkept = b'x' * (20 << 20); time.sleep(60)"
    seen = await asyncio.wait_for(lab.execute("python3", "-c", eat), 15)
    assert (seen.outcome, seen.cause) == ("lost", "oom")


@needs_limits
async def test_memory_that_takes_a_command_is_no_death(lab: Lab) -> None:
    seen = await lab.execute("python3", "-c", "bytearray(500 << 20)")
    assert (seen.outcome, seen.cause, lab.box.state) == ("oom", None, "running")


async def test_a_conmon_that_is_killed_costs_nothing_and_the_death_after_it_is_known(lab: Lab) -> None:
    conmon = int((await lab.host._podman.inspect(lab.box.container))["State"]["ConmonPid"])
    os.kill(conmon, signal.SIGKILL)
    await lab.run("x=1")
    assert lab.box.hull.init.conmon is not None
    await asyncio.wait_for(asyncio.shield(lab.box.hull.init.conmon.ended), 5)
    assert await lab.out("echo $x") == "1"
    os.kill(lab.box.init, signal.SIGKILL)
    assert (await until_dead(lab)).cause in ("killed", "runtime_crash")
    assert (await restore(lab)).sessions == ["default"]
    assert await lab.out("echo $x") == "1"


async def test_a_time_to_live_ends_calls_with_its_name_and_the_next_call_knows(host: SandboxHost) -> None:
    lab = await Lab(host, ttl="1s", name="shortlived").up()
    seen = await asyncio.wait_for(lab.run("sleep 60", 60), 5)
    assert (seen.outcome, seen.cause) == ("lost", "ttl")
    async with asyncio.timeout(5):
        while lab.id in host._boxes:
            await asyncio.sleep(0.01)
    for reference in (lab.id, lab.id[:8], "shortlived"):
        with pytest.raises(SandboxNotFound, match="UTC: its time to live was over") as told:
            await lab.call("sandbox.get", wire.Ref(id=reference))
        assert told.value.fields["cause"] == "ttl"


async def test_an_idle_box_goes_and_a_busy_one_stays(host: SandboxHost) -> None:
    lab = await Lab(host, idle_ttl="1s").up()
    begun = time.monotonic()
    assert (await lab.run("sleep 1.5; echo worked", 60)).stdout == b"worked\n"
    async with asyncio.timeout(5):
        while lab.id in host._boxes:
            await asyncio.sleep(0.02)
    assert 2.4 < time.monotonic() - begun < 4.5


async def test_a_box_that_is_copied_or_looked_at_is_not_idle(host: SandboxHost) -> None:
    lab = await Lab(host, idle_ttl="1s").up()
    following = lab.handlers["logs"](wire.Logs(id=lab.id, follow=True), lab.peer)
    await lab.run("echo said")
    assert b"said" in (await anext(following)).data
    ended = asyncio.ensure_future(anext(following))
    await asyncio.sleep(2.2)
    assert lab.id in host._boxes and not ended.done()
    ended.cancel()
    await asyncio.gather(ended, return_exceptions=True)
    await following.aclose()
    async with asyncio.timeout(5):
        while lab.id in host._boxes:
            await asyncio.sleep(0.02)


async def test_a_deletion_is_told_to_who_waits(host: SandboxHost) -> None:
    lab = await Lab(host).up()
    running = await working(lab, "602")
    queued = asyncio.create_task(lab.run("echo never", 60))
    await asyncio.sleep(0)
    await lab.call("sandbox.delete", ref(lab))
    assert ((await running).outcome, (await running).cause) == ("lost", "deleted")
    with pytest.raises(SandboxLost, match="deleted"):
        await queued


async def test_the_gone_are_listed_when_asked_and_labels_and_states_choose(host: SandboxHost) -> None:
    one = await Lab(host, labels={"job": "a", "kind": "x"}).up()
    two = await Lab(host, labels={"job": "a"}).up()
    await two.call("sandbox.stop", ref(two))

    async def listed(**more: Any) -> list[str]:
        return [info.id for info in await one.call("sandbox.list", wire.List(**more))]

    assert await listed(labels={"job": "a"}) == [one.id, two.id]
    assert await listed(labels={"job": "a", "kind": "x"}) == [one.id]
    assert await listed(labels={"job": "a"}, state="stopped") == [two.id]
    for each in (one, two):
        await each.call("sandbox.delete", ref(each))
    assert await listed(labels={"job": "a"}) == []
    gone = await one.call("sandbox.list", wire.List(labels={"job": "a"}, all=True))
    assert {(info.id, info.state, info.cause) for info in gone} == {
        (one.id, "gone", "deleted"),
        (two.id, "gone", "deleted"),
    }
    assert await listed(labels={"job": "a"}, state="gone") == [two.id, one.id]


# ---- return --------------------------------------------------------------------------------------------------------

KNOWS = """cd /srv; x=7; export Y='a b'; f() { echo "f $1"; }; alias g='echo aliased'; shopt -s extglob; set -f
umask 027; echo kept >/srv/file; echo gone >/dev/shm/file; sleep 603 & """
ASKS = 'echo "$PWD $x $Y"; f 1; g; shopt -q extglob && echo glob; echo $-; umask; cat /srv/file; cat /dev/shm/file'


async def test_a_killed_box_is_back_with_its_files_and_sessions_and_says_what_it_lost(lab: Lab) -> None:
    await lab.run(KNOWS)
    await lab.new_session("other", env={"A": "b"}, cwd="/usr")
    os.kill(lab.box.init, signal.SIGKILL)
    await until_dead(lab)
    restored = await restore(lab)
    assert (restored.info.state, restored.cause, restored.info.cause) == ("running", "killed", None)
    assert restored.sessions == ["default", "other"]
    assert "every process" in restored.lost[0]
    seen = await lab.run(ASKS)
    assert seen.session_restarted
    lines = seen.stdout.decode().splitlines()
    assert lines[:4] == ["/srv 7 a b", "f 1", "aliased", "glob"] and "f" in lines[4]
    assert lines[5:7] == ["0027", "kept"]
    said = any("/dev/shm" in each for each in restored.lost)  # Podman may keep it mounted; what is said must be so
    assert (lines[7:] == ["gone"]) != said
    assert not (await lab.run("true")).session_restarted
    other = await lab.run("echo $A $PWD", session="other")
    assert (other.stdout, other.session_restarted) == (b"b /usr\n", True)


async def test_a_stopped_box_is_restored_and_a_running_one_is_left_alone(lab: Lab) -> None:
    await lab.run("x=1")
    assert (await restore(lab)).lost == []
    assert await lab.out("echo $x") == "1" and not (await lab.run("true")).session_restarted
    await lab.call("sandbox.stop", ref(lab))
    restored = await restore(lab)
    assert (restored.cause, restored.sessions) == (None, ["default"])
    assert await lab.out("echo $x") == "1"


async def test_restart_counts_the_processes_it_ends(lab: Lab) -> None:
    await lab.run("x=1; sleep 604 & sleep 605 &")
    restored = await restore(lab, restart=True)
    assert restored.lost[0] == "3 processes" and not lab.named("604")
    assert await lab.out("echo $x") == "1"


async def test_start_without_sessions_is_never_silent(lab: Lab) -> None:
    await lab.run("x=1")
    await lab.call("sandbox.stop", ref(lab))
    await lab.call("sandbox.start", ref(lab))
    seen = await lab.run("echo [$x]")
    assert (seen.stdout, seen.session_restarted) == (b"[]\n", True)


async def test_a_shell_that_was_told_to_exit_comes_back_empty(lab: Lab) -> None:
    await lab.run("x=1")
    assert (await lab.run("exit 3")).outcome == "closed"
    await restore(lab, restart=True)
    assert await lab.out("echo [$x]") == "[]"


async def test_a_closed_session_does_not_come_back(lab: Lab) -> None:
    await lab.new_session("short")
    await lab.run("x=1", session="short")
    await lab.call("session.close", wire.SessionSpec(id=lab.id, session="short"))
    assert (await restore(lab, restart=True)).sessions == []


async def test_sessions_that_wait_to_come_back_are_listed_and_can_be_closed(lab: Lab) -> None:
    await lab.run("x=1")
    await restore(lab, restart=True)
    (waiting,) = await lab.call("session.list", ref(lab))
    assert (waiting.session, waiting.pid) == ("default", 0)
    await lab.call("session.close", wire.SessionSpec(id=lab.id))
    assert (await lab.run("echo [$x]")).stdout == b"[]\n"


async def test_a_session_that_waits_to_come_back_is_not_overwritten(lab: Lab) -> None:
    await lab.new_session("build", env={"A": "b"})
    await lab.run("x=1", session="build")
    await lab.until_saved(b"x=", "build")
    await restore(lab, restart=True)
    with pytest.raises(SessionError, match="close it first"):
        await lab.new_session("build")
    assert (await lab.run("echo $A $x", session="build")).stdout == b"b 1\n"
    await restore(lab, restart=True)
    await lab.call("session.close", wire.SessionSpec(id=lab.id, session="build"))
    await lab.new_session("build")
    assert (await lab.run("echo [$A$x]", session="build")).stdout == b"[]\n"


async def test_recycling_leaves_nothing_of_a_session_on_disk(lab: Lab) -> None:
    await lab.run("secret=1")
    assert list((saved.folder() / lab.id).iterdir())
    assert (await lab.recycle()).ok
    assert not (saved.folder() / lab.id).exists()
    seen = await lab.run("echo [$secret]")
    assert (seen.stdout, seen.session_restarted) == (b"[]\n", False)


async def test_a_deleted_box_leaves_nothing_and_cannot_be_restored(host: SandboxHost) -> None:
    lab = await Lab(host).up()
    await lab.run("x=1")
    await lab.call("sandbox.delete", ref(lab))
    assert not (saved.folder() / lab.id).exists() and not (home.runtime_dir() / "b" / lab.id).exists()
    with pytest.raises(SandboxNotFound, match="it was deleted"):
        await restore(lab)


async def test_many_deaths_in_a_row_are_each_survived(lab: Lab) -> None:
    await lab.run("n=0")
    for number in range(3):
        assert await lab.out("n=$((n + 1)); echo $n") == str(number + 1)
        await asyncio.sleep(0.05)  # bash takes a millisecond after the answer to tell its state
        os.kill(lab.box.init, signal.SIGKILL)
        begun = time.monotonic()
        await until_dead(lab)
        await restore(lab)
        assert await lab.out("echo $n") == str(number + 1)
        assert time.monotonic() - begun < 2


async def test_only_the_owner_claims(lab: Lab) -> None:
    assert (await lab.call("sandbox.claim", ref(lab))).id == lab.id  # held by its connection: nothing to claim
    with pytest.raises((SandboxError, UsageError)):
        await lab.call("sandbox.claim", wire.Ref(id="nothing"))


# ---- Podman's service ----------------------------------------------------------------------------------------------


async def test_a_podman_service_that_is_killed_is_replaced_and_calls_go_on(host: SandboxHost) -> None:
    lab = await Lab(host).up()
    for _ in range(3):
        pid = host._service.pid
        assert pid is not None
        making = asyncio.create_task(Lab(host).up())
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        made = await asyncio.wait_for(making, 20)
        await made.call("sandbox.delete", ref(made))
        assert host._service.pid not in (None, pid)
    assert await lab.out("echo on") == "on"
    await lab.call("sandbox.delete", ref(lab))
    assert await host._podman.list({"rockroll.home": home.home_id()}) == []


# ---- a stop or start that fails ------------------------------------------------------------------------------------


async def test_a_stop_that_podman_refuses_leaves_the_box_running_and_can_be_repeated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.run("x=1")

    async def refuse(*_: Any) -> None:
        raise HostError("Podman did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(lab.host._podman, "stop", refuse)
        with pytest.raises(HostError):
            await lab.call("sandbox.stop", ref(lab))
    assert await lab.out("echo $x") == "1"
    assert (await lab.call("sandbox.stop", ref(lab))).state == "stopped"
    assert (await lab.call("sandbox.start", ref(lab))).state == "running"


async def test_a_stop_that_podman_does_and_does_not_answer_is_a_stop(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = lab.host._podman.stop

    async def lose_the_answer(id: str) -> None:
        await stop(id)
        await lab.box.life.death()
        raise HostError("Podman did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(lab.host._podman, "stop", lose_the_answer)
        assert (await lab.call("sandbox.stop", ref(lab))).state == "stopped"
    assert {row.id: row.state for row in lab.host._registry.rows()}[lab.id] == "stopped"
    assert (await lab.call("sandbox.start", ref(lab))).state == "running"


async def test_a_start_that_fails_half_way_leaves_no_init_and_can_be_repeated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.run("x=1")
    await lab.until_saved(b"x=")
    inits: list[int] = []

    async def fail(_: str, pid: int) -> None:
        inits.append(pid)
        raise HostError("the port is taken")

    os.kill(lab.box.init, signal.SIGKILL)
    await until_dead(lab)
    with monkeypatch.context() as patch:
        patch.setattr(lab.box.life._endpoint, "open", fail)
        with pytest.raises(HostError, match="port"):
            await asyncio.wait_for(restore(lab), 10)
    (init,) = inits
    assert not Path(f"/proc/{init}").exists()
    assert ((await until_dead(lab)).cause, lab.box.state) == ("killed", "exited")
    assert (await asyncio.wait_for(restore(lab), 10)).sessions == ["default"]
    assert await lab.out("echo $x") == "1"


async def test_a_start_whose_caller_hangs_up_is_seen_to_its_end(lab: Lab) -> None:
    await lab.run("x=1")
    await lab.until_saved(b"x=")
    for delay in (0.0, 0.1, 0.2):
        await lab.call("sandbox.stop", ref(lab))
        starting = asyncio.create_task(restore(lab))
        await asyncio.sleep(delay)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.gather(*lab.box.life._turns)
        await asyncio.wait_for(restore(lab), 10)
        assert await lab.out("echo $x") == "1"
