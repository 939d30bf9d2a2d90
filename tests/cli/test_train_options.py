"""Options of `rockroll train` and `rockroll rollout` that do not go together are told in a sentence."""

from __future__ import annotations

import pytest

from rockroll.cli.main import run

RECIPE = "recipes/quickstart.yaml"


def test_dry_steps_go_on_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", RECIPE, "--dry-steps", "2", "--resume", "--run-dir", "/nowhere"]) == 2
    assert "--dry-steps begins anew" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "rollout"])
def test_a_resume_names_what_it_continues(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, RECIPE, "--resume"]) == 2
    assert "name that directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "rollout", "eval"])
def test_a_time_for_nodes_to_come_is_a_duration(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("ROCKROLL_NODES_WITHIN", "")  # the command sets it for the processes of its run
    assert run([command, RECIPE, "--ray", "127.0.0.1:1", "--nodes-within", "soon"]) == 2
    assert "--nodes-within: a duration is digits and one of" in capsys.readouterr().err
