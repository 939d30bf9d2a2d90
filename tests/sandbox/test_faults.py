"""Each part is killed under load: nothing that lived is lost, and nothing of what died is left.

Once in the default run, 20 times with --slow. Owner, node, warden, Podman's service, conmon, a box's init, a session's
shell; and everything at once, as when the machine goes down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from rockroll import Sandbox, SandboxConfig, home, list_sandboxes
from rockroll.errors import HostError, SandboxError, SandboxLost, SandboxNotFound
from rockroll.sandbox import node_client
from rockroll.sandbox.container.podman import HOME_LABEL, PodmanService
from rockroll.sandbox.linux.process import birth
from rockroll.sandbox.wire import Empty, NodeInfo, Ref, SessionInfo

SMALL = SandboxConfig(memory="64m", pids=64)
times = pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])


@pytest.fixture(autouse=True)
async def own_home(node_home: Path) -> AsyncIterator[None]:
    yield
    await nothing_left()
    await node_client.close_node()


# ---- what there is, seen from outside ------------------------------------------------------------------------------


async def node_pid() -> int:
    client = await node_client.connect_node()
    return (await client.call("node.info", Empty(), type=NodeInfo)).pid


def warden_pid() -> int:
    """0 where none holds the lock."""
    try:
        pid, born = map(int, (home.node_dir() / "warden.lock").read_text().split())
    except (FileNotFoundError, ValueError):
        return 0
    return pid if birth(pid) == born else 0


def service_pid() -> int:
    return int((home.node_dir() / "podman.pid").read_text().split()[0])


async def container(sandbox: Sandbox) -> tuple[int, int]:
    """(init, conmon)."""
    argv = ["podman", "inspect", "--format", "{{.State.Pid}} {{.State.ConmonPid}}"]
    process = await asyncio.create_subprocess_exec(
        *argv, f"rockroll-{home.home_id()}-{sandbox.id}", stdout=subprocess.PIPE
    )
    init, conmon = map(int, (await process.communicate())[0].split())
    return init, conmon


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def until(what: str, check: Callable[[], Awaitable[bool] | bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, f"after {seconds} s not yet: {what}"
        await asyncio.sleep(0.02)


async def remains() -> dict[str, list[str]]:
    """What this home holds of boxes: all of it empty once every box is deleted."""
    async with PodmanService() as podman:
        containers = [each["Id"] for each in await podman.list({HOME_LABEL: home.home_id()})]
    runtime = home.runtime_dir()
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(runtime) in line]
    return {
        "containers": containers,
        "folders": [str(path) for path in (runtime / "b").glob("*")],
        "fifos": [str(path) for path in runtime.rglob("*") if path.is_fifo()],
        "mounts": mounts,
        "sessions": [str(path) for path in (home.node_dir() / "sessions").glob("*")],
        "spools": [str(path) for path in (home.node_dir() / "spool").glob("*")],
        "sockets": [str(path) for path in runtime.glob("podman-*") if not living(path)],
        "boxes": box_processes(),
        "cgroups": cgroups_of_the_gone(),
    }


def living(path: Path) -> bool:
    return Path(f"/proc/{path.name.split('-')[1]}").exists()


def box_processes(id: str = "") -> list[str]:
    """What runs in boxes of this home, or in one: known by the folder that is bound into each box."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"/rockroll-{home.home_id()}/b/{id}" in (entry / "mountinfo").read_text():
                found.append(entry.name)
    return found


def cgroups_of_the_gone() -> list[str]:
    with sqlite3.connect(f"file:{home.node_dir() / 'registry.sqlite'}?mode=ro", uri=True) as registry:
        gone = [id for (id,) in registry.execute("SELECT container FROM gone WHERE container != ''")]
    root = Path("/sys/fs/cgroup")
    places = [f"{controller}libpod_parent/libpod-{id}*" for id in gone for controller in ("", "*/")]
    return [str(path) for place in places for path in root.glob(place)]


async def nothing_left() -> None:
    for info in await list_sandboxes():
        with contextlib.suppress(SandboxNotFound):
            await (await Sandbox.attach(info.id)).delete()
    seen: dict[str, list[str]] = {}

    async def clean() -> bool:
        nonlocal seen
        seen = {name: found for name, found in (await remains()).items() if found}
        return not seen

    try:
        await until("nothing left", clean, 10)
    except AssertionError:
        raise AssertionError(f"left behind: {seen}") from None


class Load:
    """Boxes that count, one command after the other; every number that was answered must be the one before plus one."""

    def __init__(self, boxes: int) -> None:
        self.boxes = [Sandbox(SMALL) for _ in range(boxes)]
        self._tasks: list[asyncio.Task[None]] = []
        self.answered = 0
        self.lost = 0

    async def __aenter__(self) -> Load:
        await asyncio.gather(*(box.start() for box in self.boxes))
        self._tasks = [asyncio.create_task(self._count(box)) for box in self.boxes]
        return self

    async def _count(self, box: Sandbox) -> None:
        await box.arun("n=0")
        last = 0
        while True:
            try:
                seen = await box.arun("n=$((n + 1)); echo $n", timeout=30)
            except SandboxLost as error:
                assert error.fields["cause"] == "node_lost", error
                self.lost += 1
                # It may have run or not: what the session knows now is what counts on.
                last = await self._known(box)
                continue
            assert (seen.outcome, seen.exit_code) == ("ok", 0), seen
            number = int(seen.stdout)
            # After a lost node the state is that of the last command whose state had arrived.
            assert number == last + 1 or (seen.session_restarted and last - 1 <= number <= last + 1), (last, seen)
            last, self.answered = number, self.answered + 1

    async def _known(self, box: Sandbox) -> int:
        while True:
            try:
                return int((await box.arun("echo $n", timeout=30)).stdout)
            except SandboxLost:
                self.lost += 1

    async def progress(self) -> None:
        """Every box has answered again."""
        before = self.answered
        await until("progress of the load", lambda: self.answered > before + 2 * len(self.boxes) or self._raise())

    def _raise(self) -> bool:
        for task in self._tasks:
            if task.done():
                task.result()
        return False

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(box.delete() for box in self.boxes))
        for error in done:
            if not isinstance(error, asyncio.CancelledError):
                raise error if isinstance(error, BaseException) else AssertionError(error)


# ---- the parts -----------------------------------------------------------------------------------------------------


@times
async def test_a_node_that_is_killed_is_followed_by_one_that_has_its_boxes(rounds: int) -> None:
    kept = await Sandbox(SandboxConfig(memory="64m"), owner="detached").start()
    await kept.write_file("/srv/file", b"kept")
    async with Load(2) as load:
        inits = [(await container(box))[0] for box in (*load.boxes, kept)]
        for _ in range(rounds):
            before = await node_pid()
            creating = asyncio.create_task(Sandbox(SMALL).start())  # under way when the node dies
            await asyncio.sleep(0.05)
            kill(before)
            with contextlib.suppress(SandboxLost):
                await (await creating).delete()
            await load.progress()
            assert await node_pid() != before
        assert [(await container(box))[0] for box in (*load.boxes, kept)] == inits
    assert await (await Sandbox.attach(kept.id)).read_file("/srv/file") == b"kept"


async def test_a_killed_node_comes_back_without_a_client() -> None:
    """The warden alone: an owner that is killed while there is no node is found out all the same."""
    owner, made = await start_owner()
    pid = await node_pid()
    await node_client.close_node()
    kill(pid)
    guard = home.node_dir() / "guard.json"
    await until("another node", lambda: json.loads(guard.read_text()).get("node", [pid])[0] != pid)
    kill(owner.pid)
    await owner.wait()
    await until("the end of its box", lambda: not box_processes())
    await ended_with_its_owner(made)


async def ended_with_its_owner(made: str) -> None:
    """At once; over HTTP the server holds the lease, and it tells the new node of the end when it is back with it: a
    box that had died with its node by then is told as that."""

    async def gone() -> bool:
        return made not in [info.id for info in await list_sandboxes()]

    causes = "the process that owned it ended"
    if os.environ.get("ROCKROLL_BASE_URL"):
        await until("the owner's box is gone", gone)
        causes += "|the node that held it died"
    with pytest.raises(SandboxNotFound, match=causes):
        await Sandbox.attach(made)


async def start_owner() -> tuple[asyncio.subprocess.Process, str]:
    script = (
        "import asyncio; from rockroll import Sandbox, SandboxConfig\n"
        "async def main():\n"
        "    box = await Sandbox(SandboxConfig(memory='64m')).start()\n"
        "    await box.arun('sleep 1000 &'); print(box.id, flush=True); await box.arun('sleep 1000')\n"
        "asyncio.run(main())"
    )
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert owner.stdout
    return owner, (await owner.stdout.readline()).decode().strip()


@times
async def test_an_owner_that_is_killed_takes_its_boxes_and_no_others(rounds: int) -> None:
    async with Load(1) as load:
        for _ in range(rounds):
            owner, made = await start_owner()
            kill(owner.pid)
            await owner.wait()

            async def gone(made: str = made) -> bool:
                return made not in [info.id for info in await list_sandboxes()]

            await until("the owner's box is gone", gone)
            with pytest.raises(SandboxNotFound, match="the process that owned it ended"):
                await Sandbox.attach(made)
        await load.progress()
        assert load.lost == 0


@times
async def test_a_warden_that_is_killed_is_followed_by_another(rounds: int) -> None:
    async with Load(1) as load:
        for _ in range(rounds):
            before = warden_pid()
            assert before
            kill(before)
            await until("another warden", lambda before=before: warden_pid() not in (0, before))
        await load.progress()
        assert load.lost == 0


@times
async def test_podmans_service_is_replaced_and_costs_no_box(rounds: int) -> None:
    async with Load(2) as load:
        for _ in range(rounds):
            making = [asyncio.create_task(Sandbox(SMALL).start()) for _ in range(2)]
            await asyncio.sleep(0.08)
            kill(service_pid())
            for made in await asyncio.gather(*making, return_exceptions=True):
                if isinstance(made, HostError | SandboxError):  # half a start cannot be asked for twice
                    made = await Sandbox(SMALL).start()
                assert isinstance(made, Sandbox), made
                await made.delete()
            if rounds > 1:
                await asyncio.sleep(1.1)  # one that dies sooner than in a second counts as one that cannot stay
        await load.progress()
        assert load.lost == 0


@times
async def test_a_conmon_that_is_killed_costs_nothing(rounds: int) -> None:
    async with Load(1) as load:
        for _ in range(rounds):
            box = await Sandbox(SMALL).start()
            await box.arun("x=1; echo kept >/srv/file")
            init, conmon = await container(box)
            kill(conmon)
            assert (await box.arun("echo $x")).stdout == b"1\n"
            kill(init)
            with pytest.raises(SandboxLost):
                while True:
                    await box.arun("true")
            assert (await box.restore()).sessions == ["default"]
            assert (await box.arun("echo $x; cat /srv/file")).stdout == b"1\nkept\n"
            await box.delete()
        await load.progress()
        assert load.lost == 0


@times
async def test_a_box_that_is_killed_is_told_and_comes_back(rounds: int) -> None:
    async with Load(2) as load:
        async with Sandbox(SMALL) as box:
            await box.arun("n=0; cd /srv")
            for number in range(1, rounds + 1):
                assert (await box.arun("n=$((n + 1)); echo $n $PWD")).stdout == f"{number} /srv\n".encode()
                running = asyncio.create_task(box.arun("sleep 1000"))
                await asyncio.sleep(0.05)
                kill((await container(box))[0])
                seen = await running
                assert (seen.outcome, seen.cause) == ("lost", "killed")
                restored = await box.restore()
                assert (restored.cause, restored.sessions) == ("killed", ["default"])
        await load.progress()
        assert load.lost == 0


@times
async def test_a_shell_that_is_killed_comes_back_with_its_state(rounds: int) -> None:
    async with Load(1) as load, Sandbox(SMALL) as box:
        await box.arun("x=kept")
        node = await node_client.connect_node()
        for _ in range(rounds):
            running = asyncio.create_task(box.arun("sleep 1000"))
            await asyncio.sleep(0.05)
            (session,) = await node.call("session.list", Ref(id=box.id), type=list[SessionInfo])
            kill(session.pid)
            assert (await running).outcome == "killed"
            seen = await box.arun("echo $x")
            assert (seen.stdout, seen.session_restarted) == (b"kept\n", True)
        await load.progress()


@times
async def test_a_machine_that_goes_down_leaves_no_orphan_and_detached_boxes_can_be_restored(rounds: int) -> None:
    for _ in range(rounds):
        kept = await Sandbox(SMALL, owner="detached").start()
        await kept.arun("x=1; cd /srv; echo data >file")
        owner, made = await start_owner()
        pids = [await node_pid(), service_pid(), warden_pid(), owner.pid]
        for box in (kept, await Sandbox.attach(made)):
            pids += await container(box)
        await node_client.close_node()
        os.kill(pids[0], signal.SIGSTOP)  # a machine does not go down one by one: nobody may start another meanwhile
        for pid in [pids[2], *pids]:
            kill(pid)
        await owner.wait()
        await until("every process is gone", lambda pids=pids: not any(birth(pid) for pid in pids))
        shutil.rmtree(home.runtime_dir())

        again = await Sandbox.attach(kept.id)
        assert (again.info.state, again.info.cause) == ("exited", "node_lost")
        await ended_with_its_owner(made)
        restored = await again.restore()
        assert (restored.cause, restored.sessions) == ("node_lost", ["default"])
        assert (await again.arun("echo $x $PWD; cat file")).stdout == b"1 /srv\ndata\n"
        assert box_processes() == box_processes(again.id)
        await again.delete()
