"""Rollouts of an Env, stepped by rockroll's own loop against an engine with a policy in Python."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from rockroll.agent.config import AgentConfig
from rockroll.engine.api import GenerateRequest, Generation
from rockroll.errors import EngineError, EnvError, ProcessDied, RockrollError, UsageError
from rockroll.rollout.config import RedundancyConfig, RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Event
from rockroll.rollout.tokenizer import ChatTokenizer

from . import games
from .engines import Policy, ScriptedEngine, last_user

GAMES = games.__name__


def parity(prompt: str, request: GenerateRequest) -> str:
    """Right at the second try."""
    number = int(prompt.partition("parity of ")[2].partition("?")[0])
    right, wrong = ("even", "odd") if number % 2 == 0 else ("odd", "even")
    return right if "left" in last_user(prompt) else wrong


def rollout(tokenizer: ChatTokenizer, policy: Policy, env: str, **more: Any) -> tuple[Rollout, ScriptedEngine]:
    engine = ScriptedEngine(tokenizer, policy, more.pop("context_length", 2048))
    task = TaskConfig(
        env=f"{GAMES}:{env}",
        options=more.pop("options", {}),
        max_turns=more.pop("max_turns", 8),
        slow=more.pop("slow", False),
        where=more.pop("where", "here"),
    )
    rest = {name: more.pop(name) for name in ("seed", "events") if name in more}
    return Rollout(RolloutConfig(**more), engine, None, task, None, tokenizer, **rest), engine


async def test_groups_of_valid_episodes_whose_samples_are_what_the_engine_said(tokenizer: ChatTokenizer) -> None:
    run, engine = rollout(tokenizer, parity, "Guess")
    async with run:
        groups = await run.batch(5, groups=3, episodes=2)
    assert [group.id for group in groups] == [15, 16, 17]
    assert len({group.seed for group in groups}) == 3
    for group in groups:
        assert [episode.index for episode in group.episodes] == [0, 1]
        for episode in group.episodes:
            assert (episode.outcome, episode.reward, episode.turns) == ("ok", 1.0, 2)
            (sample,) = episode.samples
            assert "You guess." in tokenizer.decode(sample.ids)
            first, second = (tokenizer.encode(word) + tokenizer.stop_ids for word in ("odd", "even"))
            sampled = [i for i, m in zip(sample.ids, sample.mask, strict=True) if m]
            assert sampled in (first + second, second + first)
            assert {v for v, m in zip(sample.versions, sample.mask, strict=True) if m} == {3}
            assert episode.turn_rewards == [0.0, 1.0] and len(sample.turns) == 2
    assert games.Guess.closed >= 6
    assert len(engine.requests) == 12


async def test_every_request_has_a_seed_of_its_own_that_a_second_run_repeats(tokenizer: ChatTokenizer) -> None:
    seen = []
    for seed in (1, 1, 2):
        run, engine = rollout(tokenizer, parity, "Guess", seed=seed)
        async with run:
            await run.batch(0, groups=2, episodes=2)
            await run.batch(1, groups=2, episodes=2)
        seen.append({request.seed for request in engine.requests})
    assert len(seen[0]) == 16
    assert seen[0] == seen[1]
    assert not seen[0] & seen[2]


async def test_evaluation_uses_seeds_that_training_never_has_and_its_own_temperature(tokenizer: ChatTokenizer) -> None:
    run, engine = rollout(tokenizer, parity, "Guess", top_p=0.9)
    games.Guess.seeds.clear()
    async with run:
        episodes = await run.evaluate([4, 7, 5], temperature=0.0)
        assert [episode.seed for episode in episodes] == [4, 7, 5]
        assert {(request.temperature, request.top_p) for request in engine.requests} == {(0.0, 1.0)}
        assert sorted(games.Guess.seeds) == [9, 11, 15]
        await run.batch(0, groups=4, episodes=1)
    assert all(seed % 2 == 0 for seed in games.Guess.seeds[3:])


async def test_an_env_that_takes_a_split_is_told(tokenizer: ChatTokenizer) -> None:
    run, engine = rollout(tokenizer, lambda *_: "x", "Endless", options={"limit": 1})
    async with run:
        await run.evaluate([1], 0.0)
        await run.batch(0, groups=1, episodes=1)
    told = [last_user(tokenizer.decode(request.prompt_ids)) for request in engine.requests]
    assert told == ["go (eval)", "go (train)"]


@pytest.mark.parametrize(
    ("more", "turns", "detail"),
    [
        ({"max_turns": 3}, 3, r"may ask the model 3 times"),
        ({"options": {"limit": 2}}, 2, "own limit of steps"),
        ({"context_length": 60, "max_turns": 50}, None, "context is 60 tokens"),
    ],
)
async def test_budgets_truncate_and_score(
    tokenizer: ChatTokenizer, more: dict[str, Any], turns: int | None, detail: str
) -> None:
    run, engine = rollout(tokenizer, lambda *_: "x", "Endless", **more)
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    (episode,) = group.episodes
    assert (episode.outcome, episode.cause) == ("truncated", "policy")
    assert episode.turns == len(engine.answers) == (turns or episode.turns)
    assert episode.reward == 0.5 * episode.turns > 0
    assert detail in episode.detail


async def test_an_answer_never_reaches_beyond_the_context(tokenizer: ChatTokenizer) -> None:
    run, engine = rollout(tokenizer, lambda *_: [50] * 500, "Endless", context_length=60, max_turns=50, max_tokens=40)
    async with run:
        await run.batch(0, groups=1, episodes=1)
    assert max(len(r.prompt_ids) + r.max_tokens for r in engine.requests) == 60


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("reset", "Broken.reset raised KeyError: 'no such level'"),
        ("step", "Broken.step raised ZeroDivisionError"),
        ("no info", r"reset returns \(observation, info\); got str"),
        ("nan", "a reward is a finite number; got nan"),
        ("three", "got a tuple of 3"),
        ("number", "an observation is text, or a list of token ids; got int"),
    ],
)
async def test_a_broken_env_is_replaced_and_in_the_end_named(tokenizer: ChatTokenizer, how: str, says: str) -> None:
    ended: list[Event] = []
    games.Broken.made = 0
    run, _ = rollout(tokenizer, lambda *_: "x", "Broken", options={"how": how, "times": 5}, events=ended.append)
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=3)
    assert [episode.reward for episode in group.episodes] == [1.0, 1.0, 1.0]
    assert group.discarded == {"env_error": 4}, "the first one made was resolve's, to check the options"
    spoiled = [e.episode for e in ended if e.episode and not e.episode.valid]
    assert {(e.outcome, e.cause, e.reward) for e in spoiled} == {("env_error", "env", None)}

    games.Broken.made = 0
    run, _ = rollout(tokenizer, lambda *_: "x", "Broken", options={"how": how})
    async with run:
        with pytest.raises(EnvError, match=says):
            await run.batch(0, groups=1, episodes=3)


async def test_an_engine_that_fails_now_and_then_costs_a_replacement_and_never_a_score(
    tokenizer: ChatTokenizer,
) -> None:
    calls = iter(range(10**6))

    def policy(prompt: str, request: GenerateRequest) -> str:
        if next(calls) % 3 == 0:
            raise EngineError("out of blocks")
        return "x"

    run, _ = rollout(tokenizer, policy, "Endless", options={"limit": 1})
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=4)
    assert [e.reward for e in group.episodes] == [0.5] * 4
    assert group.discarded == {"infra_error": 2}


async def test_an_engine_that_always_fails_stops_the_batch_with_its_words(tokenizer: ChatTokenizer) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        raise EngineError("out of blocks")

    run, _ = rollout(tokenizer, policy, "Endless")
    async with run:
        with pytest.raises(RockrollError, match=r"more than 8 episodes.*9 of 9 for infra; most often: out of blocks"):
            await run.batch(0, groups=1, episodes=4)


async def test_a_dead_engine_ends_the_batch_at_once(tokenizer: ChatTokenizer) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        raise ProcessDied("the engine died", name="engine", code=-9, log_tail="")

    run, engine = rollout(tokenizer, policy, "Endless", concurrency=1)
    async with run:
        with pytest.raises(ProcessDied):
            await run.batch(0, groups=8, episodes=8)
    assert len(engine.requests) < 8


async def test_redundant_episodes_and_groups_are_cancelled_down_to_the_engine(tokenizer: ChatTokenizer) -> None:
    stuck: list[asyncio.Future[None]] = []

    def gate(request: GenerateRequest) -> asyncio.Future[None] | None:
        group, index, turn = request.id.split("-")[1], request.id.split("-")[2], request.id.rpartition(".")[2]
        if (group == "0" or index == "0") and turn == "1":
            stuck.append(asyncio.get_running_loop().create_future())
            return stuck[-1]
        return None

    ended: list[Event] = []
    run, engine = rollout(
        tokenizer,
        parity,
        "Guess",
        redundancy=RedundancyConfig(episodes=1, groups=1),
        events=ended.append,
    )
    engine.gate = gate
    async with run:
        groups = await run.batch(0, groups=2, episodes=2)
    assert [group.id for group in groups] == [1, 2]
    assert all([e.index for e in group.episodes] == [1, 2] for group in groups)
    assert all(future.cancelled() for future in stuck) and len(engine.aborted) == len(stuck) == 5
    finished = [e.episode for e in ended if e.episode]
    cancelled = [e for e in finished if e.outcome == "cancelled"]
    assert len(cancelled) == 5
    assert sum(group.wasted_tokens for group in groups) == sum(e.sampled for e in cancelled) > 0
    assert ended[-1].running == 0


async def test_cancelling_a_batch_leaves_no_task_and_no_request(tokenizer: ChatTokenizer) -> None:
    run, engine = rollout(tokenizer, parity, "Guess")
    engine.gate = lambda request: asyncio.get_running_loop().create_future()
    async with run:
        batch = asyncio.ensure_future(run.batch(0, groups=2, episodes=2))
        while len(engine.requests) < 4:
            await asyncio.sleep(0)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
    assert len(engine.aborted) == 4
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_more_episodes_at_once_than_the_concurrency(tokenizer: ChatTokenizer) -> None:
    seen: list[Event] = []
    run, _ = rollout(tokenizer, parity, "Guess", concurrency=3, events=seen.append)
    async with run:
        await run.batch(0, groups=4, episodes=4)
    assert max(event.running for event in seen) == 3
    assert [sum(e.kind == kind for e in seen) for kind in ("started", "turn", "finished")] == [16, 32, 16]
    assert sum(e.tokens for e in seen if e.kind == "turn") == sum(e.tokens for e in seen if e.kind == "finished")


async def test_an_episode_over_its_time_is_replaced_not_scored(tokenizer: ChatTokenizer) -> None:
    run, engine = rollout(tokenizer, parity, "Guess", episode_timeout=0.5)  # enough for an answer on a busy machine
    first = asyncio.get_running_loop().create_future()
    engine.gate = lambda request: first if len(engine.requests) == 1 else None
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    assert group.discarded == {"timeout": 1}
    assert group.episodes[0].outcome == "ok"


async def test_a_slow_env_does_not_hold_up_the_loop(tokenizer: ChatTokenizer) -> None:
    run, _ = rollout(tokenizer, lambda *_: "x", "Slow", slow=True)
    async with run:
        await run.batch(0, groups=1, episodes=2)
    assert threading.get_ident() not in games.Slow.threads


async def test_an_aborted_generation_is_not_trained(tokenizer: ChatTokenizer) -> None:
    class Aborting(ScriptedEngine):
        async def generate(self, request: GenerateRequest) -> Generation:
            whole = await super().generate(request)
            if len(self.requests) > 1:
                return whole
            return Generation(token_ids=[50], logprobs=[-1.0], versions=[3], finish_reason="abort")

    engine = Aborting(tokenizer, lambda *_: "x")
    task = TaskConfig(env=f"{GAMES}:Endless", options={"limit": 1})
    async with Rollout(RolloutConfig(), engine, None, task, None, tokenizer) as run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    assert group.discarded == {"infra_error": 1}
    assert 50 not in group.episodes[0].samples[0].ids


@pytest.mark.parametrize(
    ("task", "agent", "says"),
    [
        (TaskConfig(env=f"{GAMES}:threading"), None, "neither"),
        (TaskConfig(env=f"{GAMES}:Gues"), None, "did you mean Guess"),
        (TaskConfig(env="rockroll:frozen_lak"), None, "did you mean rockroll:frozen_lake"),
        (TaskConfig(env="no_such_module:X"), None, "no Python module 'no_such_module'"),
        (TaskConfig(env=f"{GAMES}:Endless", options={"limits": 1}), None, "takes the options limit, split; got limits"),
        (TaskConfig(env=f"{GAMES}:Endless"), AgentConfig(command="true"), "leave out the section `agent`"),
        (TaskConfig(env="rockroll:shell"), None, "is worked on by an agent"),
        (TaskConfig(env="rockroll:shell"), AgentConfig(command="true"), "needs a pool"),
        (
            TaskConfig(env="rockroll:shell"),
            AgentConfig(command="true", files={"/a.py": "rockroll:no.py"}),
            "rockroll:no.py cannot be read.*rockroll:shell_agent.py",
        ),
    ],
)
async def test_a_task_that_cannot_be_is_refused_before_anything_starts(
    tokenizer: ChatTokenizer, task: TaskConfig, agent: AgentConfig | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        Rollout(RolloutConfig(), ScriptedEngine(tokenizer, parity), None, task, agent, tokenizer)


async def test_an_env_may_be_awaited_and_others_go_on(tokenizer: ChatTokenizer) -> None:
    run, _ = rollout(tokenizer, parity, "Awaited", concurrency=64)
    begun = time.monotonic()
    async with run:
        groups = await run.batch(0, groups=8, episodes=8)
    assert {e.outcome for group in groups for e in group.episodes} == {"ok"}
    assert time.monotonic() - begun < 64 * 0.1


async def test_as_many_slow_envs_run_at_once_as_there_are_episodes(tokenizer: ChatTokenizer) -> None:
    games.Slow.threads.clear()
    run, _ = rollout(tokenizer, lambda *_: "x", "Slow", slow=True, concurrency=40)
    async with run:
        await run.batch(0, groups=1, episodes=40)
    assert len(games.Slow.threads) > 12, "asyncio's own pool has 6 on two cores"


@pytest.mark.parametrize("where", ["here", "process"])
async def test_observations_of_token_ids_are_trained_as_they_are(tokenizer: ChatTokenizer, where: Any) -> None:
    answers = iter(["go on", "stop"])
    run, engine = rollout(tokenizer, lambda *_: next(answers), "Codes", where=where)
    async with run:
        (group,) = await run.batch(0, groups=1, episodes=1)
    (episode,) = group.episodes
    assert (episode.outcome, episode.reward) == ("ok", 2.0)
    (sample,) = episode.samples
    encode = tokenizer.encode
    head = encode("<|im_start|>system\nRead the codes.<|im_end|>\n<|im_start|>user\n")
    end, answer = encode("<|im_end|>\n"), encode("<|im_start|>assistant\n")
    first = [*head, 74, 71, 78, 78, 81, *end, *answer]
    second = [*first, *encode("go on"), *end, *encode("<|im_start|>user\n"), 9, 301, 7, *end, *answer]
    assert [request.prompt_ids for request in engine.requests] == [first, second]
    assert sample.ids[: len(second)] == second and tokenizer.encode(tokenizer.plain([74, 71, 78, 78, 81])) != [
        74,
        71,
        78,
        78,
        81,
    ]
    assert not any(sample.mask[: len(first)])


async def test_an_id_that_the_model_does_not_know_is_an_env_error(tokenizer: ChatTokenizer) -> None:
    run, _ = rollout(tokenizer, lambda *_: "go", "Codes", options={"wild": True})
    async with run:
        with pytest.raises(EnvError, match="token ids are from 0 to 308, the model's; got 1000000"):
            await run.batch(0, groups=1, episodes=1)
