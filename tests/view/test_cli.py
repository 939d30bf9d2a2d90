"""`rockroll view` on the command line: what it shows, exports and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from rockroll.cli.main import run


def test_an_episode_is_exported_to_standard_output(made_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", str(made_runs / "shell-a"), "--export", "train-9-3-0-75"]) == 0
    page = capsys.readouterr().out
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>") and "train-9-3-0-75" in page


def test_an_episode_that_is_not_there_is_wrong_usage(made_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", str(made_runs / "shell-a"), "--export", "nobody"]) == 2
    assert "none of shell-a has a record of 'nobody'" in capsys.readouterr().err


def test_a_folder_that_holds_no_run_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", str(tmp_path)]) == 2
    assert f"{tmp_path} has no recipe.yaml" in capsys.readouterr().err


def test_without_a_token_only_this_machine_may_ask(made_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["view", str(made_runs / "shell-a"), "--host", "0.0.0.0", "--port", "0", "--no-token"]) == 2
    assert "all of them could read these runs" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_with_the_cure(made_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(["view", str(made_runs / "shell-a"), "--port", str(taken.getsockname()[1])]) == 1
    assert "Choose another --port" in capsys.readouterr().err
