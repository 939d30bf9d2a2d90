"""Several agents in one episode: who begins, when it is over, what each earns. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from rockroll.agent.team import MemberConfig, TeamConfig
from rockroll.controller.agents import batch_row, compared
from rockroll.controller.batch import to_batch
from rockroll.errors import EnvError
from rockroll.rollout.filters import varied
from rockroll.rollout.sample import AgentRecord, Episode, Group, Sample, SampledTurn
from rockroll.rollout.team import Team, mean, of_member, shares
from rockroll.rollout.verdict import AgentRun
from rockroll.sandbox.config import SandboxConfig


def team(*names: str, agents: dict[str, dict[str, Any]] | None = None, **more: Any) -> TeamConfig:
    given = agents or {name: {} for name in names}
    return TeamConfig(agents={name: MemberConfig(command="x", **each) for name, each in given.items()}, **more)


# ---- who begins, and when it is over -------------------------------------------------------------------------------


def test_together_all_begin_at_once_and_it_is_over_when_the_last_has_ended() -> None:
    it = Team(team("a", "b"))
    assert it.begin() == ["a", "b"]
    assert it.ended("b", "finished") == [] and not it.over
    assert it.ended("a", "budget") == [] and it.over
    assert it.happened(asked=True) == ("budget", "a")


def test_in_turn_the_next_begins_when_the_one_before_has_ended() -> None:
    it = Team(team("a", "b", "c", order="in_turn"))
    assert it.begin() == ["a"]
    assert it.ended("a", "finished") == ["b"]
    assert it.ended("b", "finished") == ["c"] and not it.over
    assert it.ended("c", "finished") == [] and it.over
    assert it.happened(asked=True) == ("finished", "")


def test_when_the_one_that_ends_it_has_ended_the_others_are_stopped() -> None:
    it = Team(team("a", "b", ends="a"))
    it.begin()
    it.ended("a", "finished")
    assert it.over and it.working == {"b"}
    it.stop()
    assert it.fates == {"a": "finished", "b": "stopped"} and it.happened(asked=True) == ("finished", "")


@pytest.mark.parametrize("how", ["agent_crashed", "agent_time", "memory", "agent_mute"])
def test_an_agent_that_breaks_ends_the_episode_or_not_as_the_recipe_says(how: Any) -> None:
    ends, goes_on = Team(team("a", "b")), Team(team("a", "b", on_crash="go_on"))
    for it in (ends, goes_on):
        it.begin()
        it.ended("a", how)
    assert ends.over and not goes_on.over
    ends.stop()
    assert ends.happened(asked=True) == (how, "a") and ends.fates["b"] == "stopped"
    goes_on.ended("b", "finished")
    assert goes_on.happened(asked=True)[0] in ("finished", "agent_crashed")
    assert goes_on.failed == ({"a"} if how in ("agent_time", "memory") else set())


def test_in_turn_nobody_begins_after_a_crash_that_ends_it() -> None:
    it = Team(team("a", "b", order="in_turn"))
    it.begin()
    assert it.ended("a", "agent_crashed") == [] and it.over
    it.stop()
    assert it.fates["b"] == "not_begun"


@pytest.mark.parametrize("how", ["box_lost", "box_ended", "box_memory"])
def test_a_lost_sandbox_ends_the_episode_whatever_the_recipe_says(how: Any) -> None:
    it = Team(team("a", "b", on_crash="go_on"))
    it.begin()
    it.ended("b", how)
    assert it.over
    it.stop()
    assert it.happened(asked=True) == (how, "b")


def test_where_all_broke_or_nobody_asked_there_is_no_grade() -> None:
    it = Team(team("a", "b", on_crash="go_on"))
    it.begin()
    it.ended("a", "memory")
    it.ended("b", "agent_time")
    assert it.happened(asked=True) == ("memory", "a")
    silent = Team(team("a", "b"))
    silent.begin()
    silent.ended("a", "finished")
    silent.ended("b", "finished")
    assert silent.happened(asked=False) == ("agent_mute", "")


def test_an_agent_may_have_nothing_to_ask_if_it_ends_in_order() -> None:
    assert of_member("agent_mute", AgentRun(asked=False, outcome="ok", exit_code=0)) == "finished"
    assert of_member("agent_mute", AgentRun(asked=False, outcome="ok", exit_code=1)) == "agent_mute"
    with pytest.raises(ValueError, match="was not at work"):
        Team(team("a", "b")).ended("a", "finished")


# ---- what each earns -----------------------------------------------------------------------------------------------


def test_a_grade_is_one_for_all_or_one_for_each() -> None:
    assert shares("t", 0.5, ["a", "b"], set(), 0.0) == {"a": 0.5, "b": 0.5}
    assert shares("t", {"b": 1, "a": 0.25}, ["a", "b"], set(), 0.0) == {"a": 0.25, "b": 1.0}
    assert shares("t", 1.0, ["a", "b"], {"b"}, -1.0) == {"a": 1.0, "b": -1.0}
    assert mean({"a": 1.0, "b": 0.0}) == 0.5


@pytest.mark.parametrize(
    ("grade", "said"),
    [
        ({"a": 1.0}, "one for each of a, b; grade returned rewards for a"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "rewards for a, b, c"),
        ({"a": 1.0, "b": float("nan")}, "finite number; grade returned nan for b"),
        ("good", "finite number; grade returned 'good' for a"),
        (None, "finite number; grade returned None"),
    ],
)
def test_another_grade_is_the_tasks_error(grade: Any, said: str) -> None:
    with pytest.raises(EnvError, match=said):
        shares("t", grade, ["a", "b"], set(), 0.0)


# ---- the recipe's section ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: team("a"), "2 to 16 agents; got 1"),
        (lambda: team("A", "b"), "small letters, digits and _.*got 'A'"),
        (lambda: team("all", "b"), "no agent is called all"),
        (lambda: team("a", "b", ends="c"), "ends is all, or one of a, b; got 'c'"),
        (lambda: team("a", "b", ends="a", order="in_turn"), "who comes after a would never begin"),
        (lambda: team(agents={"a": {"sandbox": "x"}, "b": {}}), "one of the sandboxes main; got x"),
        (lambda: team("a", "b", sandboxes={"x": SandboxConfig()}), "no agent works in the sandbox x"),
        (lambda: team("a", "b", sandboxes={"main": SandboxConfig()}), "put its settings there"),
        (lambda: team(agents={"a": {}, "b": {"takes": {"a": ("/x",)}}}), "set order: in_turn"),
        (
            lambda: team(agents={"a": {"takes": {"b": ("/x",)}}, "b": {}}, order="in_turn"),
            "agents before it .there is none",
        ),
        (lambda: team(agents={"a": {}, "b": {"takes": {"a": ("x",)}}}, order="in_turn"), "absolute path; got 'x' of a"),
    ],
)
def test_a_section_that_cannot_be_says_so(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


def test_agents_of_one_sandbox_have_endpoints_of_their_own() -> None:
    box = SandboxConfig()
    it = team(agents={"a": {}, "b": {"sandbox": "x"}, "c": {}, "d": {"sandbox": "x"}}, sandboxes={"x": box})
    assert it.seats == {"a": 0, "b": 0, "c": 1, "d": 1}


# ---- what is trained -----------------------------------------------------------------------------------------------


def episode(index: int, rewards: dict[str, float], spoke: str = "ab") -> Episode:
    samples = [
        Sample([1, 2], [False, True], [0.0, -1.0], [-1, 0], [SampledTurn(0, 1, 2, "s")], agent=name) for name in spoke
    ]
    agents = [AgentRecord(name, "finished", reward, turns=1) for name, reward in rewards.items()]
    reward = mean(rewards)
    return Episode(f"e{index}", "t", 7, 4, index, "ok", None, reward, samples, 2, 0.1, agents=agents)


def test_each_agent_is_compared_with_itself_alone() -> None:
    first = Group(4, "t", 7, [episode(0, {"a": 1.0, "b": 0.0}), episode(1, {"a": 0.0, "b": 0.5})], 0)
    alone = Group(
        5, "t", 8, [Episode("e", "t", 8, 5, 0, "ok", None, 1.0, [Sample([1], [True], [0.0], [0])], 1, 0.1)], 0
    )
    batch = to_batch(1, [first, alone], 1.0)
    assert [(s.episode, s.group, s.reward) for s in batch.samples] == [
        (0, 0, 1.0),
        (1, 1, 0.0),
        (2, 0, 0.0),
        (3, 1, 0.5),
        (4, 2, 1.0),
    ]
    assert [s.turns[0].reward for s in batch.samples[:4]] == [1.0, 0.0, 0.0, 0.5]


def test_an_agent_that_spoke_in_one_episode_alone_is_left_out_and_counted() -> None:
    group = Group(4, "t", 7, [episode(0, {"a": 1.0, "b": 0.0}), episode(1, {"a": 0.0, "b": 0.5}, "a")], 0)
    assert compared(group) == {"a"}
    assert [s.episode for s in to_batch(1, [group], 1.0).samples] == [0, 1]
    row = batch_row([group])
    assert row["agents/not_compared"] == 1 and row["agents/tokens/b"] == 1
    assert row["agents/reward_mean/b"] == 0.25 and row["agents/broke/a"] == 0.0
    assert compared(Group(4, "t", 7, group.episodes[:1], 0)) == {"a", "b"}


def test_a_group_varies_where_one_agents_rewards_do() -> None:
    one = episode(0, {"a": 1.0, "b": 0.0})
    assert varied(Group(4, "t", 7, [one, episode(1, {"a": 0.0, "b": 1.0})], 0)), "though the means are equal"
    assert not varied(Group(4, "t", 7, [one, episode(1, {"a": 1.0, "b": 0.0})], 0))
