"""Processes as the box numbers them, and signals that reach the one meant or nobody."""

from __future__ import annotations

import asyncio

import pytest

from rockroll.errors import SandboxError, SandboxLost, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.exec import processes
from rockroll.sandbox.linux.signals import number_of
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def listed(lab: Lab) -> list[wire.ProcessInfo]:
    return await lab.call("sandbox.processes", wire.Ref(id=lab.id))


async def one(lab: Lab, word: str) -> wire.ProcessInfo:
    async with asyncio.timeout(5):  # what was just started may not have become its program yet
        while len(found := [each for each in await listed(lab) if each.command.startswith(word)]) != 1:
            await asyncio.sleep(0.01)
    return found[0]


async def subshells(lab: Lab) -> list[wire.ProcessInfo]:
    return [each for each in await listed(lab) if each.command.startswith("bash") and each.parent]


async def send(lab: Lab, pid: int, name: str = "TERM", birth: int = 0) -> None:
    await lab.call("sandbox.signal", wire.Signal(id=lab.id, pid=pid, signal=name, birth=birth))


async def test_pids_parents_users_and_sessions_are_the_boxs_own(lab: Lab) -> None:
    await lab.new_session("build")
    shell = int(await lab.out("echo $$", session="build"))
    running = asyncio.create_task(lab.run("sleep 111; :", session="build"))
    while not lab.named("111"):
        await asyncio.sleep(0.005)
    await lab.run("setsid -f runuser -u nobody sleep 222 2>/dev/null || setsid -f sleep 222")
    init = (await listed(lab))[0]
    sleeper, background = await one(lab, "sleep 111"), await one(lab, "sleep 222")
    assert (init.pid, init.parent, init.user, init.session) == (1, 0, "root", None)
    assert (sleeper.parent, sleeper.session, sleeper.state, sleeper.user) == (shell, "build", "S", "root")
    assert background.session == "default", "a job that outlives its command is still the session's"
    assert sleeper.memory_bytes > 0 and sleeper.cpu_s < 1
    await send(lab, sleeper.pid)
    assert (await running).outcome == "ok"


async def test_what_a_process_uses_is_its_own(lab: Lab) -> None:
    await lab.run("python3 -c 'b = bytearray(b\"x\") * (40 << 20)\nwhile 1: pass' & sleep 0.5")
    busy = await one(lab, "python3 -c b = ")
    assert busy.memory_bytes > 40 << 20 and busy.cpu_s > 0.05 and busy.state == "R"


async def test_a_signal_reaches_one_process(lab: Lab) -> None:
    await lab.run("(trap 'echo got > /srv/usr1; exit' USR1; while :; do sleep 0.05; done) & sleep 333 & sleep 444 &")
    async with asyncio.timeout(5):  # the shell's copies of itself become `sleep` when they get to it
        while len(found := await subshells(lab)) != 1:
            await asyncio.sleep(0.01)
    (trap,) = found
    await send(lab, trap.pid, "SIGUSR1")
    await lab.out("until [ -e /srv/usr1 ]; do sleep 0.01; done")
    await send(lab, (await one(lab, "sleep 333")).pid, "9")
    await lab.until_none("333")
    assert lab.named("444")


async def test_a_pid_that_another_has_now_gets_nothing(lab: Lab) -> None:
    await lab.run("sleep 555 &")
    sleeper = await one(lab, "sleep 555")
    with pytest.raises(SandboxError, match="its number is another's now"):
        await send(lab, sleeper.pid, "KILL", sleeper.birth - 1)
    assert lab.named("555")
    await send(lab, sleeper.pid, "KILL", sleeper.birth)
    # Born in the same hundredth of a second as another: only both numbers name it.
    while (sleeper.pid, sleeper.birth) in [(each.pid, each.birth) for each in await listed(lab) if each.state != "Z"]:
        await asyncio.sleep(0.01)
    with pytest.raises(SandboxError, match="no process"):
        await send(lab, sleeper.pid, "KILL", sleeper.birth)


async def test_no_process_outside_the_box_can_be_named(lab: Lab) -> None:
    await lab.run("sleep 666 &")
    await one(lab, "sleep 666")
    (host,) = lab.named("666")
    inside = {each.pid for each in await listed(lab)}
    for pid in (host, 2**22, 0, -1):
        if pid not in inside:
            with pytest.raises(SandboxError, match="no process"):
                await send(lab, pid, "KILL")
    assert lab.named("666")


async def test_init_is_refused(lab: Lab) -> None:
    with pytest.raises(UsageError, match="init"):
        await send(lab, 1, "KILL")


@pytest.mark.parametrize("name", ["", "NOPE", "99", "SIGSIG"])
async def test_a_signal_that_there_is_not_is_refused(shared: Lab, name: str) -> None:
    with pytest.raises(UsageError, match="as in TERM"):
        await send(shared, 2, name)


async def test_signals_by_name_and_number() -> None:
    assert [number_of(name) for name in ("TERM", "sigterm", "15", 15)] == [15] * 4


@pytest.mark.parametrize("name", ["\u00b2", "9" * 5000, "-1", 99])
async def test_what_looks_like_a_number_and_is_none_is_no_signal(name: str | int) -> None:
    with pytest.raises(UsageError, match="as in TERM"):
        number_of(name)


async def test_users_of_a_box_may_be_written_in_any_way(lab: Lab) -> None:
    await lab.run(
        f"echo 'a:x:\u00b2:' >/etc/passwd; echo 'b:x:{'9' * 5000}:' >>/etc/passwd; echo 'c:x:0:' >>/etc/passwd"
    )
    assert {each.user for each in await listed(lab)} == {"c"}


async def test_a_hostile_command_line_is_text_of_bounded_length(lab: Lab) -> None:
    await lab.run(r"""bash -c 'exec -a "$(printf "\e[31m\377%.0sx" {1..9000})" sleep 777' &""")
    while not (found := [each for each in await listed(lab) if "x" in each.command and "777" not in each.command]):
        await asyncio.sleep(0.01)
    assert len(found[0].command) <= processes.COMMAND_BYTES


async def test_a_box_that_does_not_run_has_none(lab: Lab) -> None:
    await lab.call("sandbox.stop", wire.Ref(id=lab.id))
    with pytest.raises(SandboxLost):
        await listed(lab)
    with pytest.raises(SandboxLost):
        await send(lab, 2)
