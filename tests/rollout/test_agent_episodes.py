"""Rollouts of a SandboxTask: a real agent process in a real sandbox, real HTTP, real ZeroMQ; the policy is Python."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rockroll import Sandbox, SandboxConfig, home, rpc
from rockroll.agent.config import AgentConfig, BudgetConfig
from rockroll.engine.api import GenerateRequest
from rockroll.env.shell import ShellTask
from rockroll.errors import AgentError, EngineError, EnvError, ModelServiceError
from rockroll.model_service.wire import ChatRequest, Message
from rockroll.rollout.config import RedundancyConfig, RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Episode, Event
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox.container import runtime
from rockroll.sandbox.pool import Pool

from . import agents
from .engines import Policy, ScriptedEngine, last_user

TASKS = agents.__name__


@pytest.fixture
async def pool(node: rpc.Client) -> AsyncIterator[Pool]:
    async with Pool(SandboxConfig(memory="64m", pids=64), 2) as pool:
        yield pool


def rollout(
    tokenizer: ChatTokenizer, pool: Pool, mode: str, policy: Policy = lambda *_: "x", **more: Any
) -> tuple[Rollout, ScriptedEngine]:
    engine = ScriptedEngine(tokenizer, policy)
    task = TaskConfig(env=f"{TASKS}:{more.pop('env', 'Said')}", options={"says": more.pop("says", "x")}, max_turns=3)
    budget = BudgetConfig(**more.pop("budget", {}))
    agent = AgentConfig(command=f"python3 /opt/ask.py {mode}", timeout=more.pop("timeout", 20), budget=budget)
    events = more.pop("events", lambda _: None)
    config = RolloutConfig(**{"concurrency": 2, **more})
    address = f"ipc://{home.runtime_dir() / 'relay-test'}"
    return Rollout(config, engine, pool, task, agent, tokenizer, address=address, events=events), engine


async def one(run: Rollout) -> Episode:
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    return group.episodes[0]


async def test_what_the_agent_was_told_is_what_was_sampled_and_is_trained(tokenizer: ChatTokenizer, pool: Pool) -> None:
    run, engine = rollout(
        tokenizer, pool, "work", lambda p, _: "two" if last_user(p) == "more" else "öne ", says="öne two"
    )
    async with run:
        groups = await run.batch(0, groups=2, episodes=2)
    for episode in [e for group in groups for e in group.episodes]:
        assert (episode.outcome, episode.reward, episode.turns, episode.detail) == ("ok", 1.0, 2, "")
        (sample,) = episode.samples
        sampled = [i for i, m in zip(sample.ids, sample.mask, strict=True) if m]
        stop = tokenizer.stop_ids
        assert sampled == tokenizer.encode("öne ") + stop + tokenizer.encode("two") + stop
        assert f'train {episode.seed}: it\'s "it"' in tokenizer.decode(sample.ids)
    assert {request.temperature for request in engine.requests} == {1.0}, "the agent's wish is overruled"


async def test_the_shell_task_s_own_agent_gets_a_one_where_the_policy_knows_the_answer(
    tokenizer: ChatTokenizer, pool: Pool
) -> None:
    situations = [ShellTask().situation(seed, "eval") for seed in range(6)]

    def policy(prompt: str, request: GenerateRequest) -> str:
        if prompt.count("<|im_start|>user") > 1:
            return "done"
        situation = next(s for s in situations if s.instruction in prompt)
        expected = situation.secret.expected
        gone = " ".join(situation.files.keys() - expected.keys())
        writes = [f"printf '{data.decode()}' > {name}" for name, data in expected.items()]
        return "; ".join([f"rm -f {gone}", *writes])

    engine = ScriptedEngine(tokenizer, policy)
    agent = AgentConfig(
        command="python3 -I -S /opt/shell_agent.py", files={"/opt/shell_agent.py": "rockroll:shell_agent.py"}
    )
    address = f"ipc://{home.runtime_dir() / 'relay-test'}"
    task = TaskConfig(env="rockroll:shell", max_turns=4)
    config = RolloutConfig(concurrency=2)
    async with Rollout(config, engine, pool, task, agent, tokenizer, address=address) as run:
        episodes = await run.evaluate(range(6), temperature=0.0)
    assert [(e.outcome, e.reward, e.detail) for e in episodes] == [("ok", 1.0, "")] * 6


@pytest.mark.parametrize(
    ("mode", "outcome", "reward", "detail", "more"),
    [
        ("daemon", "ok", 1.0, "", {}),
        ("fail", "ok", 1.0, "", {}),
        ("rm", "ok", 0.0, "", {}),
        ("hang", "truncated", 0.0, "time limit of 1", {"timeout": 1}),
        ("memory", "truncated", 0.0, "memory limit", {}),
        ("stubborn", "truncated", 0.0, "may ask the model 3 times", {}),
        ("long", "truncated", 1.0, "context is 2048 tokens", {"says": "400 context_length_exceeded"}),
    ],
)
async def test_what_policy_and_agent_do_to_themselves_is_scored(
    tokenizer: ChatTokenizer,
    pool: Pool,
    mode: str,
    outcome: str | None,
    reward: float,
    detail: str,
    more: dict[str, Any],
) -> None:
    agents.Said.graded.clear()
    run, engine = rollout(tokenizer, pool, mode, **more)
    episode = await one(run)
    assert episode.reward == reward
    assert outcome is None or episode.outcome == outcome
    assert detail in episode.detail
    assert episode.turns == len(engine.answers)
    if mode == "stubborn":
        assert episode.turns == 3
        said = agents.Said.graded[0][1].splitlines()
        assert 1 <= len(said) <= 8 and said[0] == b"403 turn_budget_exceeded"


@pytest.mark.parametrize(
    ("mode", "budget", "turns", "said", "detail"),
    [
        ("stubborn", {"calls": 2}, 2, b"429 rate_limit_exceeded", "2 calls of the model (budget calls)"),
        ("stubborn", {"body_bytes": 150}, 1, b"400 context_length_exceeded", "150 bytes of requests"),
        ("work", {"prompt_tokens": 1}, 1, b"x", "1 tokens of prompts"),
        ("work", {"seconds": 0.001}, 0, b"", "0.001 seconds with the model"),
        ("work", {"calls": 5, "concurrent": 1, "seconds": 60}, 2, b"xx", ""),
    ],
)
async def test_an_episode_over_its_budget_gets_the_vendors_error_and_is_truncated(
    tokenizer: ChatTokenizer, pool: Pool, mode: str, budget: dict[str, Any], turns: int, said: bytes, detail: str
) -> None:
    agents.Said.graded.clear()
    run, _ = rollout(tokenizer, pool, mode, budget=budget, says="xx")
    episode = await one(run)
    assert (episode.outcome, episode.turns) == ("truncated" if detail else "ok", turns)
    assert detail in episode.detail
    assert bool(episode.sampled) == bool(turns), "what it did until then is kept, and scored as it stands"
    assert [each.startswith(said) for _, each in agents.Said.graded] == [True]


async def test_two_histories_are_two_branches_of_one_episode(tokenizer: ChatTokenizer, pool: Pool) -> None:
    run, _ = rollout(tokenizer, pool, "branches")
    episode = await one(run)
    assert (episode.turns, len(episode.samples)) == (2, 2)


@pytest.mark.parametrize("how", ["deleted", "killed"])
async def test_a_sandbox_that_dies_in_mid_episode_is_replaced_not_scored(
    tokenizer: ChatTokenizer, pool: Pool, how: str
) -> None:
    killed = False

    async def kill() -> None:
        async with asyncio.timeout(20):  # the boxes of the test before may still be on their way back
            while len(pool._boxes) - len(pool._warm) > 1:
                await asyncio.sleep(0.01)
        leased = next(box for box in pool._boxes if box not in pool._warm)
        if how == "deleted":
            await (await Sandbox.attach(leased.id)).delete()
            return
        code = f"podman kill -s KILL $(podman ps -q --filter label=rockroll.id={leased.id})"
        done = await asyncio.create_subprocess_shell(code, env=runtime.environment(), stdout=subprocess.DEVNULL)
        assert await done.wait() == 0

    run, engine = rollout(tokenizer, pool, "work", concurrency=1, says="xx")

    def gate(request: GenerateRequest) -> asyncio.Future[None] | None:
        nonlocal killed
        if killed:
            return None
        killed = True
        return asyncio.ensure_future(kill())

    engine.gate = gate
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=2)
    assert group.discarded == {"infra_error": 1}
    assert [e.reward for e in group.episodes] == [1.0, 1.0]


async def test_a_broken_agent_stops_the_batch_with_its_own_words(tokenizer: ChatTokenizer, pool: Pool) -> None:
    run, _ = rollout(tokenizer, pool, "mute")
    async with run:
        with pytest.raises(
            AgentError, match=r"9 of 9 for agent.*without asking the model \(exit code 1\): I have nothing"
        ):
            await run.batch(0, groups=1, episodes=2)


async def test_a_task_that_cannot_grade_is_named(tokenizer: ChatTokenizer, pool: Pool) -> None:
    run, _ = rollout(tokenizer, pool, "fail", env="Ungradable")
    async with run:
        with pytest.raises(EnvError, match=r"Ungradable: grade raised KeyError: 'lost'"):
            await run.batch(0, groups=1, episodes=2)
        with pytest.raises(EnvError, match=r"situation raised ValueError: no such seed"):
            await run.evaluate([-1], 0.0)


async def test_an_engine_s_failure_ends_an_episode_at_once_even_where_the_agent_would_go_on(
    tokenizer: ChatTokenizer, pool: Pool
) -> None:
    calls = iter(range(100))

    def policy(prompt: str, request: GenerateRequest) -> str:
        if next(calls) < 1:
            raise EngineError("out of blocks")
        return "x"

    run, _ = rollout(tokenizer, pool, "stubborn", policy, episode_timeout=15)
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    assert group.discarded == {"infra_error": 1}


async def test_redundant_episodes_are_cancelled_down_to_the_process_in_the_box(
    tokenizer: ChatTokenizer, pool: Pool
) -> None:
    ended: list[Event] = []
    run, engine = rollout(
        tokenizer, pool, "work", says="xx", redundancy=RedundancyConfig(episodes=1), events=ended.append
    )
    asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def gate(request: GenerateRequest) -> asyncio.Future[None]:
        """The first episode's never opens; the other's does when the first has come to it."""
        if not request.id.startswith("train-0-0-0-"):
            return asked
        asked.set_result(None)
        return asyncio.get_running_loop().create_future()

    engine.gate = gate
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
        assert group.episodes[0].index == 1
        assert group.discarded == {"cancelled": 1}
        assert len(engine.aborted) == 1
        async with pool.lease() as first, pool.lease() as second:
            for box in (first, second):
                assert (await box.execute(["pgrep", "-fc", "ask.py"])).stdout == b"0\n"


async def test_a_call_of_an_episode_that_has_ended_is_refused(tokenizer: ChatTokenizer, pool: Pool) -> None:
    run, _ = rollout(tokenizer, pool, "work")
    async with run:
        with pytest.raises(ModelServiceError) as refused:
            await run.chat(
                ChatRequest(id="1", sandbox="s", token="gone", model="m", messages=[Message("user", "hello")])
            )
    assert refused.value.fields["status"] == 410
