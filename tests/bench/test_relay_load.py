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


async def test_a_small_load_is_answered_and_journalled(tmp_path: Path, model: Path) -> None:
    calls = 60
    async with (
        relay_load.process("serve", f"ipc://{tmp_path}/relay", str(tmp_path / "journal"), "write", str(model)),
        relay_load.process("gateway", f"ipc://{tmp_path}/relay", "4") as ports,
    ):
        assert len(ports.split()) == 4
        ran = await relay_load._drive(ports, calls)
        entries = list(journal.read(tmp_path / "journal"))
    assert len(ran.took) == calls
    assert len(entries) == calls + 4 * relay_load.TURNS  # those to warm up are turns too
    assert {each.episode for each in entries} == {f"episode-{number}" for number in range(4)}
    continued = [each for each in entries if each.after is not None]
    assert len(continued) > calls // 2
    assert max(len(each.new) for each in continued) <= max(len(each.new) for each in entries if each.after is None)


async def test_nothing_of_a_load_stays_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path / "home"))
    ran = await relay_load.load(2, 20, "fsync", model)
    assert len(ran.took) == 20
    assert not list(home.runs_dir().iterdir()) and not list(home.runtime_dir().glob("bench-*"))


@pytest.mark.parametrize("sessions", [0, -1, 10**6])
async def test_how_many_sessions_there_may_be_is_said(sessions: int) -> None:
    with pytest.raises(UsageError, match="--sessions: 1 to"):
        await relay.run(sessions)
