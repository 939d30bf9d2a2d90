"""Several tasks in one rollout: drawn by weight, each with its own budgets; what is broken stops nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from rockroll.errors import AgentError, EnvError, RockrollError, UsageError
from rockroll.rollout.config import CurriculumConfig, RolloutConfig, TaskConfig
from rockroll.rollout.curriculum_log import CurriculumLog
from rockroll.rollout.domain import DomainConfig, held_out
from rockroll.rollout.failure_rate import FailureRate
from rockroll.rollout.mixture import Folded
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Cause, Episode, Outcome
from rockroll.rollout.tokenizer import ChatTokenizer

from . import games
from .engines import Policy, ScriptedEngine

GAMES = games.__name__


def domain(name: str, env: str = "Endless", weight: float = 1.0, **more: Any) -> DomainConfig:
    return DomainConfig(name=name, env=f"{GAMES}:{env}", weight=weight, **more)


def rollout(tokenizer: ChatTokenizer, *tasks: TaskConfig, policy: Policy = lambda *_: "x", **more: Any) -> Rollout:
    rest = {name: more.pop(name) for name in ("seed", "curriculum_log") if name in more}
    log = rest.pop("curriculum_log", None)
    engine = ScriptedEngine(tokenizer, policy)
    return Rollout(RolloutConfig(**more), engine, None, tasks, None, tokenizer, curriculum=log, **rest)


def of_task(groups: list[Any]) -> Counter[str]:
    return Counter(group.task for group in groups)


async def test_groups_are_drawn_by_weight_and_play_by_their_own_task_s_rules(tokenizer: ChatTokenizer) -> None:
    run = rollout(tokenizer, domain("long", weight=3, max_turns=4), domain("short", max_turns=1))
    async with run:
        groups = await run.batch(0, groups=8, episodes=2)
    assert of_task(groups) == {"long": 6, "short": 2}
    for group in groups:
        for episode in group.episodes:
            assert episode.task == group.task
            assert episode.turns == {"long": 4, "short": 1}[group.task]


async def test_a_stop_and_a_start_draw_the_same_tasks(tokenizer: ChatTokenizer) -> None:
    tasks = [domain(name, weight=weight, max_turns=1) for name, weight in (("a", 5), ("b", 2), ("c", 1))]
    whole, after = rollout(tokenizer, *tasks, seed=3), rollout(tokenizer, *tasks, seed=3)
    async with whole, after:
        begun = await whole.batch(0, groups=8, episodes=1) + await whole.batch(1, groups=8, episodes=1)
        again = await after.batch(1, groups=8, episodes=1)
    assert of_task(begun) == {"a": 10, "b": 4, "c": 2}
    assert [(g.task, g.seed) for g in again] == [(g.task, g.seed) for g in begun[8:]]


async def test_every_level_is_played_with_its_own_options_and_told_in_the_record(tokenizer: ChatTokenizer) -> None:
    run = rollout(tokenizer, domain("a", levels=({"limit": 1}, {"limit": 3})), max_tokens=4)
    async with run:
        groups = await run.batch(0, groups=4, episodes=1)
        held = await run.evaluate(held_out(run.configs, 4), 0.0)
    assert sorted((e.level, e.turns) for g in groups for e in g.episodes) == [(0, 1), (0, 1), (1, 3), (1, 3)]
    assert [(e.level, e.turns) for e in held] == [(0, 1), (1, 3), (0, 1), (1, 3)]


async def test_evaluation_has_a_held_out_set_of_each_task(tokenizer: ChatTokenizer) -> None:
    run = rollout(tokenizer, domain("a", weight=3, max_turns=1), domain("b", max_turns=1))
    async with run:
        episodes = await run.evaluate(held_out(run.configs, 8), 0.0)
    assert [(e.task, e.seed) for e in episodes] == [("a", n) for n in range(6)] + [("b", n) for n in range(2)]


async def test_a_task_that_always_breaks_is_given_up_and_the_others_go_on(tokenizer: ChatTokenizer) -> None:
    run = rollout(tokenizer, domain("good", max_turns=1), domain("bad", "Broken", options={"how": "step"}))
    async with run:
        groups = await run.batch(0, groups=4, episodes=2)
        assert of_task(groups) == {"good": 4}
        assert run.mixture is not None and "ZeroDivisionError" in run.mixture.benched["bad"]
        held = await run.evaluate(held_out(run.configs, 8), 0.0)
    assert {e.task for e in held} == {"good"} and len(held) == 4


async def test_the_last_task_that_breaks_stops_the_run_with_its_own_words(tokenizer: ChatTokenizer) -> None:
    run = rollout(
        tokenizer, domain("a", "Broken", options={"how": "step"}), domain("b", "Broken", options={"how": "reset"})
    )
    async with run:
        with pytest.raises(EnvError, match=r"more than 8 episodes.*for env; most often: Broken\.(step|reset) raised"):
            await run.batch(0, groups=4, episodes=2)
        with pytest.raises(EnvError, match=r"Broken\.(step|reset) raised"):
            await run.evaluate(held_out(run.configs, 8), 0.0)


class Brittle(games.Endless):
    """Every fifth situation breaks whatever is tried."""

    def reset(self, seed: int | None = None) -> Any:
        assert seed is not None
        if seed // 2 % 5 == 0:
            raise KeyError(f"level {seed}")
        return super().reset(seed)


async def test_a_situation_that_always_breaks_costs_another_one_and_not_the_run(tokenizer: ChatTokenizer) -> None:
    run = rollout(tokenizer, TaskConfig(env=f"{__name__}:Brittle", max_turns=1), replacements=2)
    async with run:
        groups = await run.batch(0, groups=16, episodes=4)
        held = await run.evaluate(range(7), 0.0)
    assert len(groups) == 16 and all(group.seed % 5 for group in groups)
    assert sum(group.discarded.get("env_error", 0) for group in groups) >= 5
    assert [e.seed for e in held] == [1, 2, 3, 4, 6], "those that break are left out of an evaluation"


async def test_a_curriculum_follows_what_is_measured_and_keeps_it_on_disk(tokenizer: ChatTokenizer, tmp_path) -> None:
    # of two levels one always passes (two steps of a half), the other passes now and then
    def policy(prompt: str, request: Any) -> list[int] | str:
        return "x"

    levels = ({"limit": 2}, {"limit": 1})
    log = CurriculumLog(tmp_path / "c.jsonl")
    curriculum = CurriculumConfig(window=(0.0, 0.5), boost=3)
    run = rollout(tokenizer, domain("a", levels=levels), policy=policy, curriculum=curriculum, curriculum_log=log)
    async with run:
        stream = run.stream(groups=4, episodes=1)
        drawn: list[int] = []
        async with stream:
            for step in range(1, 8):
                drawn += [group.level for group in await stream.take()]
                stream.stepped(step)
    run.checkpointed(24)
    log.close()
    assert Counter(drawn[:4]) == {0: 2, 1: 2}
    assert Counter(drawn[4:]) == {0: 6, 1: 18}
    (folded,) = CurriculumLog(tmp_path / "c.jsonl").past
    assert isinstance(folded, Folded) and folded.measured == [24, 25, 26, 27] and not folded.fresh


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([domain("a", "Gues")], "did you mean Guess"),
        ([domain("a"), DomainConfig(name="b", env="rockroll:shell")], "is worked on by an agent"),
    ],
)
async def test_tasks_that_cannot_be_are_refused_before_anything_starts(
    tokenizer: ChatTokenizer, tasks: list[TaskConfig], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        rollout(tokenizer, *tasks)


def ended(outcome: Outcome, cause: Cause | None, reward: float | None, log: str = "") -> Episode:
    return Episode("e", "t", 0, 0, 0, outcome, cause, reward, [], 1, 0.1, f"it was {cause}", log=log)


def test_an_agent_that_breaks_most_of_the_time_stops_the_run_with_its_log() -> None:
    rate = FailureRate(0.5, 16)
    for _ in range(100):
        rate.check(ended("truncated", "policy", 0.0))  # what the policy does to itself never stops a run
        rate.check(ended("ok", "agent", 1.0))  # its exit code says nothing where the work is done
    for _ in range(8):
        rate.check(ended("ok", "agent", 0.0, log="KeyError: 'tool'"))
    with pytest.raises(
        AgentError, match=r"(?s)9 of the last 16 episodes of t failed.*9 of them for agent.*KeyError: 'tool'"
    ) as said:
        rate.check(ended("ok", "agent", 0.0, log="KeyError: 'tool'"))
    assert isinstance(said.value, RockrollError)
