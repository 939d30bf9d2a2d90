"""What became of the episodes, trained or not; and the numbers of each of several tasks."""

from __future__ import annotations

import pytest

from rockroll.agent.config import AgentConfig
from rockroll.controller.boxes import pool_sizes
from rockroll.controller.config import RunConfig
from rockroll.controller.domains import apart, batch_row, said
from rockroll.controller.tally import Tally
from rockroll.rollout.config import CurriculumConfig, RolloutConfig, TaskConfig
from rockroll.rollout.domain import DomainConfig
from rockroll.rollout.mixture import Arm, Mixture
from rockroll.rollout.sample import Cause, Episode, Event, Group, Outcome, Sample
from rockroll.sandbox.config import SandboxConfig


def episode(
    id: str,
    outcome: Outcome = "ok",
    cause: Cause | None = None,
    happened: str = "finished",
    *,
    reward: float | None = 1.0,
    tokens: int = 4,
    seconds: float = 2.0,
    task: str = "t",
    agent: bool = True,
) -> Episode:
    sample = Sample([1] * tokens, [True] * tokens, [-1.0] * tokens, [0] * tokens)
    return Episode(
        id, task, 0, 0, 0, outcome, cause, reward, [sample], 1, seconds,
        happened=happened, spent_s={"agent": seconds} if agent else {"env": seconds},
    )  # fmt: skip


def ended(*episodes: Episode) -> list[Event]:
    return [Event("finished", "train", 0, e.sampled, e) for e in episodes]


def group(*episodes: Episode, task: str = "t", id: int = 0) -> Group:
    return Group(id, task, 0, list(episodes), 0)


def test_causes_seconds_and_lengths_of_what_was_trained_and_of_what_was_not() -> None:
    tally = Tally()
    good, failed = episode("1"), episode("2", "truncated", "policy", "memory", reward=0.0, tokens=8)
    broken = episode("3", "infra_error", "infra", "box_lost", reward=None, seconds=5)
    cancelled = episode("4", "cancelled", None, "cancelled", reward=None, tokens=20, seconds=7)
    for event in [
        *ended(good, failed, broken, cancelled),
        Event("turn", "train", 1),
        Event("finished", "eval", 0, 1, broken),
    ]:
        tally.note(event)
    row = tally.row([group(good, failed)])
    assert {name: n for name, n in row.items() if n and name.startswith(("causes", "failures"))} == {
        "causes/policy": 1,
        "causes/infra": 1,
        "failures/memory": 1,
        "failures/box_lost": 1,
    }
    assert row["causes/env"] == row["causes/agent"] == 0
    assert (row["sandbox/busy_s"], row["sandbox/wasted_s"]) == (2 + 2 + 5 + 7, 5 + 7)
    assert (row["length/kept"], row["length/wasted"]) == (6, (4 + 20) / 2)
    assert tally.row([group(episode("5"))])["causes/policy"] == 0, "each row begins anew"


def test_a_valid_episode_that_no_batch_took_while_it_could_was_for_nothing() -> None:
    tally = Tally(max_staleness=1)
    later, never = episode("later"), episode("never", tokens=10)
    for event in ended(later, never):
        tally.note(event)
    assert tally.row([group(episode("x"))])["sandbox/wasted_s"] == 0
    assert tally.row([group(later)])["sandbox/wasted_s"] == 0
    row = tally.row([group(episode("y"))])
    assert (row["sandbox/wasted_s"], row["length/wasted"]) == (2, 10)


def test_episodes_of_an_env_hold_no_box() -> None:
    tally = Tally()
    one = episode("1", agent=False)
    tally.note(*ended(one))
    assert tally.row([group(one)])["sandbox/busy_s"] == 0


TASKS = [DomainConfig(name="a", env="x:Y"), DomainConfig(name="b", env="x:Y", levels=({}, {}))]


def test_each_task_has_its_numbers_beside_the_totals() -> None:
    groups = [
        group(episode("1"), episode("2", reward=0.0), task="a"),
        group(episode("3", reward=0.5), task="a", id=1),
    ]
    assert batch_row(TASKS, groups) == {
        "groups/a": 2,
        "reward/mean/a": 0.5,
        "reward/pass_rate/a": pytest.approx(1 / 3),
        "groups/b": 0,
        "tasks/benched": 0,
    }
    assert batch_row([TaskConfig(env="x:Y")], groups) == {}, "one task alone has the totals"
    assert apart(TASKS, [episode("1", task="a")], len) == {"a": 1}
    assert apart([TaskConfig(env="x:Y")], [episode("1")], len) == {}
    assert said({"eval/pass_rate": 0.3, "eval/pass_rate/a": 0.25}) == ["a 25%"]


def test_a_curriculum_shows_its_shares_and_rates() -> None:
    mixture = Mixture(TASKS, 1, batch=1, curriculum=CurriculumConfig(window=(0.5, 1), boost=3))
    mixture.measure(0, Arm("b", 0), 0.0, True)
    row = batch_row(TASKS, [group(episode("1"), task="a")], mixture)
    assert {name: value for name, value in row.items() if name.startswith("curriculum")} == {
        "curriculum/share/a": 0.5,
        "curriculum/share/b/0": 0.125,
        "curriculum/share/b/1": 0.375,
        "curriculum/pass_rate/b/0": 0.0,
    }


AGENT = AgentConfig(command="x")
SMALL, LARGE = SandboxConfig(memory="64m"), SandboxConfig(memory="1g")


def run(*tasks: DomainConfig, **more) -> RunConfig:
    return RunConfig(name="r", steps=1, tasks=tasks, rollout=RolloutConfig(concurrency=10), **more)


def test_tasks_with_boxes_alike_share_a_pool_and_each_kind_has_its_share() -> None:
    shell = "rockroll:shell"
    config = run(
        DomainConfig(name="a", env=shell),
        DomainConfig(name="b", env=shell, sandbox=LARGE, weight=2),
        DomainConfig(name="c", env=shell, sandbox=SMALL),
        DomainConfig(name="lake", env="rockroll:frozen_lake", weight=3),
        agent=AGENT,
        sandbox=SMALL,
    )
    assert pool_sizes(config) == [(SMALL, ["a", "c"], 3), (LARGE, ["b"], 3)]
    one = RunConfig(name="r", steps=1, task=TaskConfig(env=shell), agent=AGENT, rollout=RolloutConfig(concurrency=10))
    assert [(tasks, size) for _, tasks, size in pool_sizes(one)] == [([shell], 10)]
    assert pool_sizes(RunConfig(name="r", steps=1, task=TaskConfig(env="rockroll:frozen_lake"))) == []
