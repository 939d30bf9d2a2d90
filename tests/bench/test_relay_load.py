"""`rockroll bench relay`: the load reaches the journal, and nothing of it stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll import home
from rockroll.bench import relay, relay_load
from rockroll.errors import UsageError
from rockroll.rollout import journal
from rockroll.tiny import tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the tiny model's tokenizer and no weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(folder, context_length=2048)
    return folder


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(relay_load, "SECONDS_OF_MANY", 0.4)


async def test_a_small_load_is_answered_and_journalled(tmp_path: Path, model: Path) -> None:
    address, folder = f"ipc://{tmp_path}/relay", tmp_path / "journal"
    async with (
        relay_load.process("serve", address, str(folder), "write", str(model), str(relay_load.TURNS)),
        relay_load.process("gateway", address, "4") as said,
    ):
        _, *ports = said.split()
        assert len(ports) == 4
        ran = await relay_load.drive(ports)
        entries = list(journal.read(folder))
    assert 4 <= len(ran.took) < len(entries), "those to warm up are turns too"
    assert {each.episode for each in entries} == {f"episode-{number}" for number in range(4)}
    continued = [each for each in entries if each.after is not None]
    assert len(continued) > len(entries) // 2
    assert max(len(each.new) for each in continued) <= max(len(each.new) for each in entries if each.after is None)


async def test_a_load_ends_by_the_clock_and_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_load, "SECONDS_OF_ONE", 0.2)
    one, two = await relay_load.load("fsync", 1, 2, model=model)
    assert one.ended - one.begun < 2 and two.ended - two.begun < 2 and one.took and two.took
    assert not list(home.runs_dir().iterdir()) and not list(home.runtime_dir().glob("bench-*"))


async def test_the_growth_of_a_turn_is_of_the_processor(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_load, "LONG_S", 0.0)
    ran = await relay_load.growth(model, turns=25)
    assert 0 < ran.early < 1 and 0 < ran.late < 1
    assert ran.bytes > 1000


@pytest.mark.parametrize("sessions", [0, -1, 10**6])
async def test_how_many_sessions_there_may_be_is_said(sessions: int) -> None:
    with pytest.raises(UsageError, match="--sessions: 1 to"):
        await relay.run(sessions)
