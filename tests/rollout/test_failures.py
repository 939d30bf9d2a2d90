"""Who ruined an episode, found out in real sandboxes: what the policy's command did is scored, the rest replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rockroll import SandboxConfig, home, rpc
from rockroll.agent.config import AgentConfig
from rockroll.engine.api import GenerateRequest
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Episode, Event
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox import wire
from rockroll.sandbox.pool import Pool

from . import agents
from .engines import Policy, ScriptedEngine

FAILED = -0.5


@pytest.fixture
async def pool(node: rpc.Client) -> AsyncIterator[Pool]:
    async with Pool(SandboxConfig(memory="64m", pids=64, disk="32m"), 2) as pool:
        yield pool


def rollout(tokenizer: ChatTokenizer, pool: Pool, mode: str, policy: Policy, **more: Any) -> Rollout:
    task = TaskConfig(env=f"{agents.__name__}:Said", max_turns=3, failure_reward=FAILED)
    agent = AgentConfig(command=f"python3 /opt/ask.py {mode}", timeout=more.pop("timeout", 5))
    events = more.pop("events", lambda _: None)
    return Rollout(
        RolloutConfig(**{"concurrency": 2, "max_tokens": 512, **more}),
        ScriptedEngine(tokenizer, policy),
        pool,
        task,
        agent,
        tokenizer,
        address=f"ipc://{home.runtime_dir() / 'relay-test'}",
        events=events,
    )


FORKS = "import os, time\ntry:\n while os.fork(): pass\n time.sleep(99)\nexcept OSError: pass"
"""Leaves as many sleeping children as the box may have."""

COMMANDS = [
    ("true", "finished", 1.0),
    ("python3 -c '[bytes(1000000) for _ in iter(int, 1)]'", "finished", 1.0),
    ("kill -9 $PPID", "agent_killed", FAILED),
    ("kill -9 -1", "shell_ended", FAILED),
    ("kill 1; sleep 9", "box_ended", FAILED),
    (f"python3 -c '{FORKS}'", "pids", FAILED),
    ("dd if=/dev/zero of=/fill bs=4k; echo >> /fill", "disk", FAILED),
]
"""What the model says, what becomes of its episode, and the reward."""


async def test_what_the_policy_s_command_does_to_its_box_is_scored_and_spoils_no_other(
    tokenizer: ChatTokenizer, pool: Pool
) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        return COMMANDS[int(request.id.split("-")[1])][0]

    run = rollout(tokenizer, pool, "shell", policy, timeout=60)
    async with run:
        groups = await run.batch(0, groups=len(COMMANDS), episodes=1)
    found = [
        (command, e.happened, e.reward) for (command, *_), g in zip(COMMANDS, groups, strict=True) for e in g.episodes
    ]
    assert found == COMMANDS
    for group in groups:
        (episode,) = group.episodes
        assert not group.discarded
        assert (episode.cause == "policy") == (episode.reward == FAILED)
        assert episode.samples[0].sampled == len(tokenizer.encode(COMMANDS[group.id][0])) + 1, "it is trained"
        assert (episode.detail == "") == (episode.happened == "finished")


async def test_an_agent_that_breaks_by_itself_is_scored_with_what_it_left_and_its_words_are_kept(
    tokenizer: ChatTokenizer, pool: Pool
) -> None:
    run = rollout(tokenizer, pool, "crash", lambda *_: "x")
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    (episode,) = group.episodes
    assert (episode.outcome, episode.cause, episode.happened, episode.reward) == ("ok", "agent", "agent_crashed", 1.0)
    assert "KeyError: 'a bug'" in episode.log and "exit code 1" in episode.detail
    assert set(episode.spent_s) == {"pool", "ours", "env", "agent", "engine"}


@pytest.mark.slow
async def test_a_killed_node_is_nobody_s_score(tokenizer: ChatTokenizer, pool: Pool, node: rpc.Client) -> None:
    pid = (await node.call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
    ended: list[Episode] = []

    def note(event: Event) -> None:
        if event.episode is not None:
            ended.append(event.episode)

    run = rollout(tokenizer, pool, "work", lambda *_: "x", timeout=20, concurrency=1, events=note)
    engine: Any = run._engine
    killed = False

    def gate(request: GenerateRequest) -> asyncio.Future[None] | None:
        nonlocal killed
        if killed:
            return None
        killed = True
        os.kill(pid, signal.SIGKILL)
        return asyncio.get_running_loop().create_future()

    engine.gate = gate
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    assert [(e.outcome, e.cause, e.reward) for e in ended] == [
        ("infra_error", "infra", None),
        ("ok", None, 0.0),
    ]
    assert group.discarded == {"infra_error": 1}


class Hanging:
    """Never comes back from its first step, the first time it is played."""

    played = 0

    def reset(self, seed: int | None = None) -> Any:
        Hanging.played += 1
        return "go", {}

    async def step(self, action: str) -> Any:
        if Hanging.played == 1:
            await asyncio.Event().wait()
        return "x", 1.0, True, False, {}


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        ({"stall_timeout": 1.0}, "stall_timeout: nothing happened for 1 s, and the environment held the episode"),
        ({"episode_timeout": 1.0}, "episode_timeout of 1 s, 1"),
    ],
)
async def test_an_environment_that_hangs_is_ended_and_replaced_as_its_own_fault(
    tokenizer: ChatTokenizer, limits: dict[str, Any], detail: str
) -> None:
    Hanging.played = 0
    ended: list[Episode] = []
    task = TaskConfig(env=f"{__name__}:Hanging")
    config = RolloutConfig(**limits)
    engine = ScriptedEngine(tokenizer, lambda *_: "x")
    async with Rollout(
        config, engine, None, task, None, tokenizer, events=lambda e: ended.append(e.episode) if e.episode else None
    ) as run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    assert [(e.outcome, e.cause, e.reward) for e in ended] == [("timeout", "env", None), ("ok", None, 1.0)]
    assert detail in ended[0].detail and group.discarded == {"timeout": 1}


async def test_an_engine_that_hangs_is_nobody_s_score(tokenizer: ChatTokenizer) -> None:
    ended: list[Episode] = []
    task = TaskConfig(env=f"{__name__}:Hanging")
    Hanging.played = 1
    engine = ScriptedEngine(tokenizer, lambda *_: "x")
    engine.gate = lambda _: asyncio.get_running_loop().create_future() if len(engine.requests) == 1 else None
    config = RolloutConfig(stall_timeout=1)
    async with Rollout(
        config, engine, None, task, None, tokenizer, events=lambda e: ended.append(e.episode) if e.episode else None
    ) as run:
        await run.batch(0, groups=1, episodes=1)
    assert [(e.happened, e.cause, e.reward) for e in ended] == [
        ("engine_stalled", "infra", None),
        ("finished", None, 1),
    ]
    assert len(engine.aborted) == 1


@pytest.mark.slow
async def test_an_agent_s_time_stands_still_while_the_model_answers(tokenizer: ChatTokenizer, pool: Pool) -> None:
    run = rollout(tokenizer, pool, "fail", lambda *_: "x", timeout=10)
    engine: Any = run._engine
    engine.gate = lambda _: asyncio.ensure_future(asyncio.sleep(12))
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    (episode,) = group.episodes
    assert (episode.happened, episode.reward) == ("agent_crashed", 1.0), "it says exit 7 when it is done"
    assert episode.spent_s["engine"] > 11
