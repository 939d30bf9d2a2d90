"""A disk that fills up while a run writes: the run stops with a sentence, what was there is intact, and it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll.errors import RockrollError
from rockroll.rollout.tokenizer import ChatTokenizer
from tests.controller.toy import Run, config, rows, trained
from tests.rollout.conftest import write_model_folder
from tests.small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_model_folder(tmp_path_factory.mktemp("model")))


async def test_it_stops_with_a_sentence_and_goes_on_when_there_is_room(
    tokenizer: ChatTokenizer, tmp_path: Path, small_disk: SmallDisk
) -> None:
    """The room is another one each time, so that it ends in the ledger, the metrics, the records, the weights, and
    while a run starts."""
    changes = {"steps": 12, "groups": 3, "episodes": 4, "max_staleness": 1, "deterministic": True}
    await Run(config(**changes), tmp_path / "whole", tokenizer).go()
    path, told = small_disk.path / "run", set()
    for stopped in range(40):
        small_disk.leave(4096 * (1 + 2 * stopped % 17))
        try:
            await Run(config(**changes), path, tokenizer).go()
            break
        except RockrollError as error:
            assert "its disk is full (No space left on device" in error.message and "--resume" in error.message
            told.add(Path(error.message.split()[0]).parent.name)
            if (path / "metrics.jsonl").exists():
                assert rows(path) == rows(tmp_path / "whole")[: len(rows(path))]
    small_disk.room()
    await Run(config(**changes), path, tokenizer).go()
    assert stopped > 3 and {"ledger", "run"} <= told, told
    assert rows(path) == rows(tmp_path / "whole") and trained(path) == trained(tmp_path / "whole")
