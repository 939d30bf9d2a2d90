"""A run directory is written by one run, overwritten by none, and knows its whole checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll.controller.run_dir import RunDir
from rockroll.errors import UsageError


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        RunDir(tmp_path / "r", resume=False),
        pytest.raises(UsageError, match="is being written by another rockroll"),
        RunDir(tmp_path / "r", resume=False),
    ):
        pass


def test_an_earlier_run_is_continued_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds none"), RunDir(tmp_path / "r", resume=True):
        pass
    with RunDir(tmp_path / "r", resume=False) as run:
        (run.path / "recipe.yaml").write_text("")
    with pytest.raises(UsageError, match="continue it with --resume"), RunDir(tmp_path / "r", resume=False):
        pass
    with RunDir(tmp_path / "r", resume=True):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"), RunDir(tmp_path / "file", resume=False):
        pass


def test_what_a_death_leaves_of_a_checkpoint_that_goes_is_none_and_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(path: Path, **_: object) -> None:
        if (path / "model").exists():
            (path / "model" / "config.json").unlink()
            raise Killed

    with RunDir(tmp_path / "r", resume=False) as run:
        for step in (1, 2):
            (run.checkpoint(step) / "model").mkdir(parents=True)
            (run.checkpoint(step) / "model" / "config.json").touch()
        with monkeypatch.context() as patch:
            patch.setattr("rockroll.controller.run_dir.shutil.rmtree", kill)
            with pytest.raises(Killed):
                run.prune(1)
        assert run.steps() == [2]
        run.prune(1)
        assert [path.name for path in run.checkpoints.iterdir()] == ["step_2"]


def test_only_whole_checkpoints_count_and_old_ones_go(tmp_path: Path) -> None:
    with RunDir(tmp_path / "r", resume=False) as run:
        for step in (2, 10, 9):
            (run.checkpoint(step) / "model").mkdir(parents=True)
            (run.checkpoint(step) / "model" / "config.json").touch()
        (run.checkpoints / "step_11.partial").mkdir()
        run.checkpoint(12).mkdir()
        assert run.steps() == [2, 9, 10]
        run.prune(2)
        assert run.steps() == [9, 10]
        assert run.last_step == 0, "a new run has none, whatever is there"
        assert not (run.checkpoints / "step_11.partial").exists(), "what a death left half written goes too"
        run.prune(0)
        assert run.steps() == [9, 10]
