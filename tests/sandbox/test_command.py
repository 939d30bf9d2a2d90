"""What a command on its own feet promises."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rockroll.errors import SandboxError, SandboxLost, SessionError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.exec import commands
from rockroll.sandbox.exec import journal as journal_module
from rockroll.sandbox.exec.commands import Commands
from rockroll.sandbox.exec.feed import Feed, Tether
from rockroll.sandbox.exec.journal import Asked, Journal
from rockroll.sandbox.exec.spool import Spool
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")
_ids = itertools.count()


class Begun:
    """A command of the shared box, steered through the host's handlers."""

    def __init__(self, lab: Lab, id: str) -> None:
        self.lab, self.id = lab, id
        self.ref = wire.CommandRef(id=lab.id, command_id=id)

    async def wait(self) -> wire.Observation:
        return await self.lab.call("command.wait", self.ref)

    async def cancel(self) -> wire.Observation:
        return await self.lab.call("command.cancel", self.ref)

    async def send(self, data: bytes, end: bool = False) -> None:
        await self.lab.call("command.input", wire.SendInput(id=self.lab.id, command_id=self.id, data=data, end=end))

    async def signal(self, number: int) -> None:
        await self.lab.call("command.signal", wire.SendSignal(id=self.lab.id, command_id=self.id, signal=number))

    def output(self, offset: int = 0) -> AsyncIterator[wire.OutputChunk]:
        body = wire.ReadOutput(id=self.lab.id, command_id=self.id, offset=offset)
        return self.lab.handlers["command.output"](body, self.lab.peer)

    async def until(self, said: bytes) -> None:
        seen = b""
        async for chunk in self.output():
            seen += chunk.data
            if said in seen:
                return
        raise AssertionError(f"ended after {seen!r}")


async def begin(lab: Lab, command: str | list[str], id: str | None = None, **more: Any) -> Begun:
    id = id or f"c{next(_ids)}"
    what: dict[str, Any] = {"argv": command} if isinstance(command, list) else {"command": command.encode()}
    await lab.call("command.start", wire.Start(id=lab.id, command_id=id, **what, **more))
    return Begun(lab, id)


@pytest_asyncio.fixture(params=["session", "program"], loop_scope="module")
async def way(request: pytest.FixtureRequest) -> str:
    return request.param


def told(way: str, line: str) -> str | list[str]:
    """The same work for a session and for a program."""
    return line if way == "session" else ["bash", "-c", line]


async def test_output_is_there_while_the_command_runs(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "echo one; echo two >&2; read x < /dev/null; sleep 0.2; echo three"))
    seen = [(chunk.offset, chunk.stream, chunk.data) async for chunk in command.output()]
    assert seen == [(0, "stdout", b"one\n"), (4, "stderr", b"two\n"), (8, "stdout", b"three\n")] or sorted(
        seen[:2], key=lambda part: part[1]
    ) == [(4, "stderr", b"two\n"), (0, "stdout", b"one\n")]
    done = await command.wait()
    assert (done.stdout, done.stderr, done.exit_code, done.outcome) == (b"one\nthree\n", b"two\n", 0, "ok")


async def test_a_reader_goes_on_from_an_offset(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "seq 1 20000"))
    whole = (await command.wait()).stdout
    assert b"".join([chunk.data async for chunk in command.output()]) == whole
    assert b"".join([chunk.data async for chunk in command.output(70_001)]) == whole[70_001:]
    assert [chunk async for chunk in command.output(len(whole))] == []
    with pytest.raises(UsageError, match="offset"):
        await anext(aiter(command.output(len(whole) + 1)))


async def test_input_arrives_in_order_and_ends(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "echo ready; cat; echo over"), stdin=True)
    await command.until(b"ready")
    await command.send(b"a\0\xff\n")
    await command.send(b"z" * 300_000)
    await command.send(b"", end=True)
    assert (await command.wait()).stdout == b"ready\na\0\xff\n" + b"z" * 300_000 + b"over\n"


async def test_input_sent_at_once_is_not_lost(shared: Lab, way: str) -> None:
    for _ in range(5):
        command = await begin(shared, told(way, "cat"), stdin=True)
        await command.send(b"early", end=True)
        assert (await command.wait()).stdout == b"early"


async def test_input_of_a_command_that_reads_no_more_is_refused_not_waited_for(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "exec 0</dev/null; echo closed; sleep 0.5"), stdin=True)
    await command.until(b"closed")
    with pytest.raises(SessionError, match="input"):
        for _ in range(100):
            await asyncio.wait_for(command.send(b"x" * 65536), 5)
    await command.wait()


async def test_without_input_it_reads_end_of_file(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "cat; echo eof"))
    assert (await command.wait()).stdout == b"eof\n"
    with pytest.raises(SessionError, match="stdin=True"):
        await command.send(b"x")


async def test_a_signal_reaches_what_it_has_started(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "bash -c 'trap \"echo got it; exit 5\" TERM; echo ready; sleep 60 & wait'"))
    await command.until(b"ready")
    await command.signal(15)
    done = await command.wait()
    assert (done.stdout, done.exit_code) == (b"ready\ngot it\n", 5)
    with pytest.raises(SessionError, match="done"):
        await command.signal(15)


async def test_an_interrupt_ends_a_line_as_ctrl_c_does(shared: Lab) -> None:
    command = await begin(shared, "echo ready; sleep 60; echo not reached", session="ctrl-c")
    await command.until(b"ready")
    await command.signal(2)
    done = await command.wait()
    assert (done.stdout, done.exit_code, done.session_restarted) == (b"ready\n", 130, False)


async def test_an_id_sent_twice_runs_once(shared: Lab, way: str) -> None:
    line = told(way, "echo x >>/tmp/once; sleep 0.2; cat /tmp/once; rm /tmp/once")
    id = f"once-{way}"
    first, second = await asyncio.gather(begin(shared, line, id), begin(shared, line, id))
    assert [(await each.wait()).stdout for each in (first, second)] == [b"x\n", b"x\n"]
    assert (await (await begin(shared, line, id)).wait()).stdout == b"x\n"
    with pytest.raises(UsageError, match="another command"):
        await begin(shared, told(way, "echo other"), id)


async def test_cancelling_kills_it_and_keeps_its_output(shared: Lab, way: str) -> None:
    command = await begin(shared, told(way, "echo begun; sleep 54321 & setsid sleep 54321; echo no"))
    await command.until(b"begun")
    done = await command.cancel()
    assert (done.outcome, done.exit_code, done.stdout) == ("killed", None, b"begun\n")
    await shared.until_none("54321")
    assert await command.cancel() == done


async def test_a_timeout_keeps_partial_output(shared: Lab, way: str) -> None:
    done = await (await begin(shared, told(way, "echo begun; sleep 100"), timeout=0.3)).wait()
    assert (done.outcome, done.stdout) == ("timeout", b"begun\n")


async def test_output_over_the_limit_is_counted(shared: Lab, way: str) -> None:
    done = await (await begin(shared, told(way, "head -c 3000000 /dev/zero"), max_output=1000)).wait()
    assert (len(done.stdout), done.truncated_bytes) == (1000, 2_999_000)


async def test_commands_of_one_session_queue(shared: Lab) -> None:
    begun = [await begin(shared, f"sleep 0.05; n=$((n+1)); echo $n {i}", session="queue") for i in range(5)]
    assert [(await each.wait()).stdout for each in begun] == [f"{i + 1} {i}\n".encode() for i in range(5)]
    infos = {info.command_id: info for info in await shared.call("command.list", wire.Ref(id=shared.id))}
    assert infos[begun[0].id].state == "done" and infos[begun[0].id].text.startswith("sleep 0.05")


async def test_what_cannot_run_tells_whoever_waits(shared: Lab) -> None:
    command = await begin(shared, "a\0b")
    with pytest.raises(UsageError, match="NUL"):
        await command.wait()
    with pytest.raises(SessionError, match="no command"):
        await Begun(shared, "never").wait()


async def test_a_recycled_box_knows_no_earlier_command(lab: Lab) -> None:
    command = await begin(lab, "echo secret")
    await command.wait()
    running = await begin(lab, "sleep 60")
    assert (await lab.recycle()).ok
    for each in (command, running):
        with pytest.raises(SessionError, match="no command"):
            await each.wait()
    assert not commands.folder_of(lab.id).exists()


# ---- the records ---------------------------------------------------------------------------------------------------


def asked(id: str = "c") -> Asked:
    return Asked(command_id=id, session="s", text="x", digest=b"d", begun=1.0)


async def test_a_journal_that_was_torn_keeps_its_whole_frames(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", asked())
    journal.write(1, b"one")
    journal.write(2, b"two")
    journal.close(remove=False)
    raw = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(raw[:-1])
    again = Journal.load(tmp_path / "j")
    assert (again.size, again.end, again.asked) == (3, None, asked())
    again.write(2, b"2")
    assert [(part.offset, part.stream, part.data) async for part in _finished(again).follow(0)] == [
        (0, 1, b"one"),
        (3, 2, b"2"),
    ]
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="no command's journal"):
        Journal.load(tmp_path / "empty")


def _finished(journal: Journal) -> Journal:
    journal.finish(wire.Observation(stdout=b"", stderr=b"", exit_code=0, outcome="ok"))
    return journal


async def test_after_the_nodes_death_a_command_is_lost_with_its_output_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    runs = 0

    async def run(body: wire.Start, tether: Tether) -> wire.Observation:
        nonlocal runs
        runs += 1
        tether.tap(1, b"partial")
        await asyncio.sleep(60)
        raise AssertionError

    before = Commands("box", run)
    start = wire.Start(id="box", command_id="c", command=b"make")
    before.start(start)
    await asyncio.sleep(0.01)
    after = Commands("box", run)
    after.load()
    assert after.start(start).state == "done"
    done = await after.wait("c")
    assert (done.outcome, done.stdout, runs) == ("lost", b"partial", 1)
    await after.clear()
    await before.clear()


async def test_old_records_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    monkeypatch.setattr(commands, "KEPT", 3)

    async def run(body: wire.Start, tether: Tether) -> wire.Observation:
        return wire.Observation(stdout=b"", stderr=b"", exit_code=0, outcome="ok")

    box = Commands("box", run)
    for number in range(6):
        box.start(wire.Start(id="box", command_id=str(number), command=b"true"))
        await box.wait(str(number))
    assert [info.command_id for info in box.list()] == ["3", "4", "5"]
    assert len(list(commands.folder_of("box").iterdir())) == 3
    await box.clear()


async def test_a_feed_whose_command_never_opens_it_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    feed = Feed()
    feed.through_fifo(tmp_path / "in")
    writing = asyncio.ensure_future(feed.write(b"x"))
    await asyncio.sleep(0.02)
    feed.over()
    with pytest.raises(SessionError, match="closed"):
        await writing


async def test_a_byte_at_a_time_is_not_a_frame_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MOST_FRAMES", 10)
    journal = Journal(tmp_path / "j", asked())
    for number in range(300_000):
        journal.write(1, b"%d" % (number % 10))
    assert len(journal._places) == 5
    for number in range(20):  # one that alternates gets an end, and what is over is counted
        journal.write(1 + number % 2, b"x")
    _finished(journal)
    assert journal.end is not None and journal.end.truncated_bytes == 7
    again = Journal.load(tmp_path / "j")
    assert (await again.observation()).stdout[:20] == b"01234567890123456789"
    assert (again.size, again.end) == (300_013, journal.end)


async def test_a_signal_between_two_programs_of_a_command_is_for_the_second(shared: Lab) -> None:
    """Bash itself is at work when the caller sees the first output: nothing is there yet that a signal could hit."""
    command = await begin(shared, "echo on; i=0; while ((i < 3000)); do ((++i)); done; sleep 100")
    async for _ in command.output():
        break
    await command.signal(signal.SIGKILL)
    assert (await asyncio.wait_for(command.wait(), 20)).exit_code == 137


async def test_a_full_disk_costs_the_record_and_not_the_command(tmp_path: Path) -> None:
    """/dev/full takes no byte."""
    log = Spool(tmp_path / "log")
    os.dup2(os.open("/dev/full", os.O_RDWR), log._file.fd())
    log.write(b"x" * 100)
    assert log.size == 0
    log.close(remove=True)
    journal = Journal(tmp_path / "j", asked())
    os.dup2(os.open("/dev/full", os.O_RDWR), journal._file.fd())
    journal.write(1, b"x" * 100)
    _finished(journal)
    assert journal.end is not None and (journal.size, journal.end.truncated_bytes) == (0, 100)
    journal.close(remove=True)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_records_that_are_kept_hold_no_descriptor_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 are kept for each box: a hundred boxes of them are more than a process may hold open."""
    monkeypatch.setattr("rockroll.sandbox.linux.kept.KEPT", 4)
    before = open_files()
    journals = [Journal(tmp_path / str(n), asked(str(n))) for n in range(100)]
    for n, journal in enumerate(journals):
        journal.write(1, b"%d" % n)
        _finished(journal)
    assert open_files() <= before + 4
    for n, journal in enumerate(journals):
        assert (await journal.observation()).stdout == b"%d" % n
        assert [part.data async for part in journal.follow(0)] == [b"%d" % n]
        journal.close(remove=True)
    assert open_files() <= before


async def test_input_for_a_program_that_has_ended_but_whose_child_holds_the_pipe_is_refused(shared: Lab) -> None:
    command = await begin(shared, ["sh", "-c", "exec 3<&0; sleep 5 <&3 & sleep 0.3"], stdin=True)
    with pytest.raises(SessionError, match="closed"):
        await asyncio.wait_for(command.send(b"x" * 1_000_000), 3)


async def test_a_box_that_does_not_run_uses_no_id_up(lab: Lab, way: str) -> None:
    await lab.call("sandbox.stop", wire.Ref(id=lab.id))
    with pytest.raises(SandboxLost, match="stopped"):
        await begin(lab, told(way, "echo made"), id="make")
    await lab.call("sandbox.restore", wire.Restore(id=lab.id))
    command = await begin(lab, told(way, "echo made"), id="make")
    assert (await command.wait()).stdout == b"made\n"


async def test_no_command_begins_while_the_box_is_made_new(lab: Lab) -> None:
    recycling = asyncio.create_task(lab.recycle())
    refused = 0
    while not recycling.done():
        try:
            await begin(lab, "true")
        except SandboxError:
            refused += 1
        await asyncio.sleep(0)
    assert refused and (await recycling).ok
    assert await lab.call("command.list", wire.Ref(id=lab.id)) == []
