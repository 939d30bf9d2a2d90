"""docs/tasks.md: its examples run as they are printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rockroll.agent.config import AgentConfig
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.tasks import AgentTask, resolve
from rockroll.rollout.tokenizer import ChatTokenizer

from .engines import ScriptedEngine, last_user

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
PYTHON, RECIPES = (re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL) for kind in ("python", "yaml"))


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    (tmp_path / "my_tasks.py").write_text("\n".join(PYTHON))
    (tmp_path / "my_agent.py").write_text("")
    return [yaml.safe_load(text) for text in RECIPES]


async def test_the_game_is_played_from_a_file_in_the_current_folder(
    tokenizer: ChatTokenizer, recipes: list[dict[str, Any]]
) -> None:
    def policy(prompt: str, request: object) -> str:
        said = [int(n) for n in re.findall(r"assistant\n(\d)", prompt)]
        hint = last_user(prompt)
        return str({"higher": said[-1] + 2, "lower": said[-1] - 1}[hint] if said else 4)

    config = TaskConfig(**recipes[0]["task"])
    async with Rollout(RolloutConfig(), ScriptedEngine(tokenizer, policy), None, config, None, tokenizer) as run:
        episodes = await run.evaluate(range(20), 0.0)
    assert {(e.outcome, e.reward) for e in episodes} <= {("ok", 1.0), ("truncated", 0.0)}
    assert sum(e.reward or 0 for e in episodes) >= 10


def test_the_sandbox_task_and_its_agent_are_accepted(recipes: list[dict[str, Any]]) -> None:
    task = resolve(TaskConfig(**recipes[1]["task"]), AgentConfig(**recipes[1]["agent"]))
    assert isinstance(task, AgentTask)
    one, same, other = (task.task.situation(seed, "train") for seed in (1, 1, 2))
    assert one == same != other
    assert one.secret == sum(map(int, one.files["numbers.txt"].split()))
