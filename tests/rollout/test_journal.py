"""The journal: what was answered is on disk, whatever dies."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rockroll.errors import HostError, ModelServiceError, UsageError
from rockroll.rollout.config import RolloutConfig
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.journal import MAGIC, Entry, Journal, Mode, read
from rockroll.rollout.wishes import Sampling

from .engines import ScriptedEngine
from .families import chat_tokenizer

WRITER = """
import asyncio, sys
from pathlib import Path
from rockroll.rollout.journal import Entry, Journal

async def main():
    journal = Journal(Path(sys.argv[1]), sys.argv[2])
    for number in range(10**9):
        await journal.put(Entry("e", number, None, [1] * 100, [2, 3], [-0.5, -1.5], [7, 7], "stop"))
        print(number, flush=True)

asyncio.run(main())
"""


def entry(number: int, episode: str = "e") -> Entry:
    return Entry(episode, number, None, [1, 2, 3], [4, 5], [-0.25, -1e-9], [3, 4], "stop", 12.3)


@pytest.mark.parametrize("mode", ["write", "fsync"])
def test_what_was_put_survives_kill_9(tmp_path: Path, mode: str) -> None:
    put = 0
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), mode], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(200):
            put = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        put = max(put, *(int(line) for line in writer.stdout.read().splitlines() if line), 0)
    kept = list(read(tmp_path))
    assert len(kept) > put
    assert [each.number for each in kept] == list(range(len(kept)))
    assert kept[-1].logprobs == [-0.5, -1.5]


@pytest.mark.parametrize("mode", ["write", "fsync"])
async def test_a_bounded_journal_forgets_the_oldest_turns_of_this_run_and_of_those_before(
    tmp_path: Path, mode: Mode
) -> None:
    most = 40_000
    for _ in range(3):
        async with Journal(tmp_path, mode, most) as journal:
            for number in range(400):
                await journal.put(entry(number))
        assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 1.2 * most
        kept = [each.number for each in read(tmp_path)]
        assert kept[-100:] == list(range(300, 400)), "the latest are whole and in order"
        assert len(kept) < 700
    async with asyncio.TaskGroup() as together, Journal(tmp_path, mode, most) as journal:
        puts = [together.create_task(journal.put(entry(number, "together"))) for number in range(600)]
        await asyncio.gather(*puts)
    kept = [each.number for each in read(tmp_path) if each.episode == "together"]
    assert kept[-1] == 599 and kept == list(range(kept[0], 600))


async def test_a_journal_that_is_not_kept_goes_when_its_run_has_ended_well(tmp_path: Path) -> None:
    async with Journal(tmp_path) as kept:
        await kept.put(entry(0))
    async with Journal(tmp_path, most=0) as journal:
        await journal.put(entry(1))
    assert list(read(tmp_path)) == [entry(0)]
    with pytest.raises(RuntimeError):
        async with Journal(tmp_path, most=0) as journal:
            await journal.put(entry(2))
            raise RuntimeError
    assert list(read(tmp_path)) == [entry(0), entry(2)], "of a run that broke it is there"


@pytest.mark.parametrize(("keep", "most"), [("all", None), ("none", 0), ("8g", 8 * 2**30), ("1m", 2**20)])
def test_how_much_is_kept_is_a_word_or_a_size(keep: str, most: int | None) -> None:
    assert RolloutConfig(journal_keep=keep).journal_most() == most


@pytest.mark.parametrize("keep", ["some", "0", "64k", ""])
def test_what_is_no_size_is_refused(keep: str) -> None:
    with pytest.raises(ValueError, match="journal_keep is all, none, or a size from 1m on"):
        RolloutConfig(journal_keep=keep)


async def test_entries_come_back_as_they_were_and_each_opening_begins_a_file(tmp_path: Path) -> None:
    for number in range(3):
        async with Journal(tmp_path) as journal:
            await journal.put(entry(number))
    assert list(read(tmp_path)) == [entry(0), entry(1), entry(2)]
    assert [each.name for each in sorted(tmp_path.iterdir())] == [f"0000{n}.journal" for n in range(3)]


async def test_a_tail_torn_anywhere_costs_the_last_entry_alone(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.put(entry(0))
        one = journal.path.stat().st_size
        await journal.put(entry(1))
    whole, torn = journal.path.read_bytes(), tmp_path / "torn"
    for size in range(len(whole)):
        torn.write_bytes(whole[:size])
        assert list(read(torn)) == ([entry(0)] if size >= one else [])
        torn.write_bytes(whole[:size] + bytes(40))  # the size reached the disk, the content did not
        if size >= len(MAGIC):
            assert list(read(torn))[:1] == ([entry(0)] if size >= one else [])


async def test_damage_before_the_end_is_an_error(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        for number in range(3):
            await journal.put(entry(number))
    data = bytearray(journal.path.read_bytes())
    data[len(MAGIC) + 12] ^= 1
    journal.path.write_bytes(data)
    with pytest.raises(HostError, match=f"damaged at byte {len(MAGIC)}"):
        list(read(tmp_path))
    journal.path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="no journal"):
        list(read(tmp_path))


async def test_fsync_returns_after_the_disk_and_those_that_come_together_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(file: int) -> None:
        size = os.fstat(file).st_size  # what is sure to be on the disk afterwards
        real(file)
        synced.append(size)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    async with Journal(tmp_path, "fsync") as journal:

        async def put(number: int) -> None:
            writing = asyncio.ensure_future(journal.put(entry(number)))
            await asyncio.sleep(0)
            end = journal._end
            await writing
            assert synced[-1] >= end

        await asyncio.gather(*(put(number) for number in range(100)))
        assert 1 <= len(synced) <= 3
        await put(100)
    assert len(list(read(tmp_path))) == 101


async def test_off_writes_nothing(tmp_path: Path) -> None:
    async with Journal(tmp_path / "none", "off") as journal:
        await journal.put(entry(0))
    assert not (tmp_path / "none").exists()


async def test_a_disk_that_is_full_is_said_and_leaves_the_file_whole(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.put(entry(0))
        old, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, old[1]))
        try:
            with pytest.raises(HostError, match="cannot be written"):
                await journal.put(entry(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, before)
        await journal.put(entry(2))
    assert list(read(tmp_path)) == [entry(0), entry(2)]


async def test_a_conversation_can_be_put_together_again_from_its_turns(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    engine = ScriptedEngine(tokenizer, lambda *_: "an answer")
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, max_turns=99, context_length=4096)
    async with Journal(tmp_path) as journal:
        talk = Dialogue("e", tokenizer, engine, sampling, seed=5, journal=journal)
        messages = [{"role": "user", "content": "first"}]
        for number in range(4):
            turn = await talk.ask(messages)
            assert len(list(read(tmp_path))) == number + 1, "it is there before the answer is"
            messages += [{"role": "assistant", "content": turn.text}, {"role": "user", "content": "and then?"}]
        await talk.ask([{"role": "user", "content": "another branch"}])
    ids: dict[int | None, list[int]] = {None: []}
    for each in read(tmp_path):
        ids[each.number] = ids[each.after] + each.new + each.sampled
    assert [ids[number] for number in range(5)] == [turn.ids for turn in talk.transcript.turns]
    assert [each.after for each in read(tmp_path)] == [None, 0, 1, 2, None]
    assert sum(len(each.new) + len(each.sampled) for each in read(tmp_path)) == len(ids[3]) + len(ids[4])


async def test_an_answer_that_cannot_be_kept_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer("qwen2.5")
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, max_turns=99, context_length=4096)
    async with Journal(tmp_path) as journal:
        engine = ScriptedEngine(tokenizer, lambda *_: "an answer")
        talk = Dialogue("e", tokenizer, engine, sampling, seed=5, journal=journal)

        async def full(entry: Entry) -> None:
            raise HostError("the disk is full")

        monkeypatch.setattr(journal, "put", full)
        with pytest.raises(ModelServiceError, match="could not keep"):
            await talk.ask([{"role": "user", "content": "first"}])
        assert isinstance(talk.over.result(), HostError)
