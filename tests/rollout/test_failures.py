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


COMMANDS = [
    ("true", "finished", 1.0),
    ("python3 -c '[bytes(1000000) for _ in iter(int, 1)]'", "finished", 1.0),
    ("kill -9 $PPID", "agent_killed", FAILED),
    ("kill -9 -1", "shell_ended", FAILED),
    ("kill 1; sleep 9", "box_ended", FAILED),
    ("(while :; do sleep 99 & done) 2>/dev/null; exec sleep 99", "agent_time", FAILED),
    ("dd if=/dev/zero of=/fill bs=4k; echo >> /fill", "disk", FAILED),
]
"""What the model says, what becomes of its episode, and the reward."""


async def test_what_the_policy_s_command_does_to_its_box_is_scored_and_spoils_no_other(
    tokenizer: ChatTokenizer, pool: Pool
) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        return COMMANDS[int(request.id.split("-")[1])][0]

    run = rollout(tokenizer, pool, "shell", policy, timeout=3)
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
