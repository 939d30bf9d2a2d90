"""Variables set for later commands: of programs, of new sessions, and of open ones from their next command on."""

from __future__ import annotations

import asyncio

import pytest

from rockroll.errors import UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")
ODD = "a 'b' \"c\" $d `e` \\ \n\t*; #é"


async def change(lab: Lab, **changes: str | None) -> dict[str, str]:
    return await lab.call("sandbox.set_env", wire.SetEnv(id=lab.id, changes=changes))


async def printed(lab: Lab, name: str) -> str:
    return (await lab.execute("printenv", name)).stdout.decode().removesuffix("\n")


async def test_programs_and_new_sessions_have_it(lab: Lab) -> None:
    whole = await change(lab, A=ODD, HOME="/srv", PATH="/opt:/usr/bin:/bin")
    assert whole == await lab.call("sandbox.env", wire.Ref(id=lab.id))
    assert (whole["A"], whole["HOME"]) == (ODD, "/srv")
    assert await printed(lab, "A") == ODD
    assert (await lab.run('printf %s "$A"')).stdout.decode() == ODD
    assert await lab.out("printenv HOME PATH") == "/srv\n/opt:/usr/bin:/bin"


async def test_none_removes_a_variable_of_the_containers_own(host: SandboxHost) -> None:
    lab = await Lab(host, env={"GONE": "1", "KEPT": "2"}).up()
    await lab.run("true")
    assert "GONE" not in await change(lab, GONE=None, NEVER=None)
    assert (await lab.execute("printenv", "GONE", "KEPT")).stdout == b"2\n"
    assert await lab.out("echo ${GONE-none} $KEPT") == "none 2"
    assert await lab.out("echo ${GONE-none} $KEPT", session="new") == "none 2"
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))


async def test_an_open_session_has_it_from_its_next_command_on(lab: Lab) -> None:
    await lab.run("A=own; export B=own; cd /srv; set -u; (exit 7)")
    await change(lab, A=ODD, B=None)
    seen = await lab.run('printf "%s|" $? "$A" "${B-none}" "$PWD"; bash -c \'printf %s "$A"\'')
    assert seen.stdout.decode() == f"7|{ODD}|none|/srv|{ODD}"
    assert (seen.stderr, seen.session_restarted) == (b"", False)


async def test_a_command_that_runs_keeps_what_it_has(lab: Lab) -> None:
    await lab.run("export A=before")
    running = asyncio.create_task(lab.run("until [ -e /srv/go ]; do sleep 0.01; done; echo $A"))
    while not lab.processes():
        await asyncio.sleep(0.01)
    queued = asyncio.create_task(lab.run("echo $A"))
    await asyncio.sleep(0.05)
    await change(lab, A="after")
    await lab.execute("touch", "/srv/go")
    assert (await running).stdout == b"before\n"
    assert (await queued).stdout == b"after\n"


async def test_a_call_and_a_session_may_still_say_otherwise(lab: Lab) -> None:
    await change(lab, A="box")
    assert (await lab.execute("printenv", "A", env={"A": "call"})).stdout == b"call\n"
    await lab.new_session("own", env={"A": "session"})
    assert await lab.out("echo $A", session="own") == "session"
    await change(lab, A="later")
    assert await lab.out("echo $A", session="own") == "later"
    await lab.run("exit 3", session="own")
    assert await lab.out("echo $A", session="own") == "later", "what was said last holds in a fresh shell too"


async def test_a_replaced_shell_has_it(lab: Lab) -> None:
    await lab.run("export A=old; x=1; trap '' INT")
    await change(lab, A="new")
    assert (await lab.run("while :; do :; done", timeout=0.3)).session_restarted
    assert await lab.out("echo $A $x") == "new 1"


async def test_it_outlives_stop_and_start_and_not_recycle(lab: Lab) -> None:
    await change(lab, A="1")
    await lab.call("sandbox.stop", wire.Ref(id=lab.id))
    await lab.call("sandbox.start", wire.Ref(id=lab.id))
    assert await printed(lab, "A") == "1"
    other = await Lab(lab.host).up()
    await change(other, A="1")
    assert (await other.recycle()).ok
    assert "A" not in await lab.call("sandbox.env", wire.Ref(id=other.id))
    assert (await other.execute("printenv", "A")).exit_code == 1
    await lab.call("sandbox.delete", wire.Ref(id=other.id))


async def test_its_values_do_not_get_into_the_log(lab: Lab) -> None:
    await lab.run("set -xv")
    await change(lab, TOKEN="hush-hush")
    await lab.run("true")
    chunks = [chunk.data async for chunk in lab.handlers["logs"](wire.Logs(id=lab.id), lab.peer)]
    assert b"hush-hush" not in b"".join(chunks)


@pytest.mark.parametrize("changes", [{"1A": "x"}, {"A-B": "x"}, {"": "x"}, {"A": "x\0y"}, {"ROCKROLL_SCOPE": "x"}])
async def test_what_no_environment_can_carry_is_refused(shared: Lab, changes: dict[str, str | None]) -> None:
    with pytest.raises(UsageError, match="env:"):
        await shared.call("sandbox.set_env", wire.SetEnv(id=shared.id, changes=changes))
