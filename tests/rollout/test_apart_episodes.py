"""`where: process` in a task: its episodes are the same, and one that hangs or crashes there is an `env_error`."""

from __future__ import annotations

from typing import Any

import pytest

from rockroll.errors import UsageError
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.tokenizer import ChatTokenizer

from .engines import ScriptedEngine

GAMES = "tests.env.games"


def rollout(tokenizer: ChatTokenizer, env: str, **more: Any) -> Rollout:
    task = TaskConfig(env=env, max_turns=5, where="process", **more)
    engine = ScriptedEngine(tokenizer, lambda prompt, request: "1", 4096)
    return Rollout(RolloutConfig(), engine, None, task, None, tokenizer)


async def test_episodes_are_played_there_and_no_process_is_left(tokenizer: ChatTokenizer) -> None:
    run = rollout(tokenizer, f"{GAMES}:Guess", options={"highest": 1})
    async with run:
        groups = await run.batch(0, groups=3, episodes=2)
        assert run._workers is not None and 1 <= len(run._workers.pids) <= 6
    assert run._workers.pids == []
    episodes = [episode for group in groups for episode in group.episodes]
    assert {(episode.outcome, episode.reward) for episode in episodes} <= {("ok", 1.0), ("truncated", 0.0)}


@pytest.mark.parametrize(
    ("env", "says"),
    [("Spins", r"did not come back within 0\.3 s; its process was killed"), ("Dies", "its process ended in step")],
)
async def test_a_hang_or_a_crash_is_an_env_error(tokenizer: ChatTokenizer, env: str, says: str) -> None:
    run = rollout(tokenizer, f"{GAMES}:{env}", call_timeout=0.3)
    async with run:
        with pytest.raises(Exception, match=says):  # every episode of this task fails so: the run says why it stops
            await run.batch(0, groups=1, episodes=2)


def test_it_is_for_an_env_and_a_limit_is_a_time(tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UsageError, match="leave out where: process"):
        rollout(tokenizer, "rockroll:shell")
    with pytest.raises(ValueError, match="task call_timeout is a number of seconds above 0"):
        TaskConfig(env="rockroll:sokoban", call_timeout=0)
