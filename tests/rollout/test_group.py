"""GroupState: exactly n valid episodes, whatever happens to the others. Budget: spoiled episodes end a run in time."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import AgentError, EnvError, RockrollError
from rockroll.rollout.group import Budget, GroupState, Start
from rockroll.rollout.sample import Cause, Episode, Outcome, Sample, TurnRecord


def ended(
    index: int, outcome: Outcome = "ok", cause: Cause | None = None, tokens: int = 2, detail: str = ""
) -> Episode:
    sample = Sample([1] * tokens, [True] * tokens, [-1.0] * tokens, [0] * tokens)
    reward = 1.0 if outcome in ("ok", "truncated") else None
    return Episode(f"e{index}", "t", 7, 0, index, outcome, cause, reward, [sample], 1, 0.1, detail)


@given(n=st.integers(1, 5), extra=st.integers(0, 3), data=st.data())
def test_any_order_of_ends_gives_n_valid_episodes_and_counts_the_rest(n: int, extra: int, data: st.DataObject) -> None:
    group = GroupState(0, "t", 7, n, extra)
    running = {start.index: start.attempt for start in group.begin()}
    assert len(running) == n + extra
    tokens, spoiled = 0, 0
    while not group.complete:
        assert sorted(group.running) == sorted(running)
        index = data.draw(st.sampled_from(sorted(running)))
        attempt = running.pop(index)
        bad = spoiled < 12 and data.draw(st.booleans())
        spoiled += bad
        tokens += 2
        again = group.end(ended(index, "infra_error", "infra") if bad else ended(index))
        if again:
            assert bad and again == Start(index, attempt + 1)
            running[index] = again.attempt
    for index in running:
        tokens += 5
        group.cancelled(index, 5)
    result = group.result()
    assert len(result.episodes) == n and all(episode.valid for episode in result.episodes)
    assert [e.index for e in result.episodes] == sorted({e.index for e in result.episodes})
    assert result.wasted_tokens + sum(e.sampled for e in result.episodes) == tokens
    assert result.discarded.get("infra_error", 0) == spoiled and result.discarded.get("cancelled", 0) == len(running)


def test_a_spoiled_episode_is_not_replaced_while_an_extra_one_can_take_its_place() -> None:
    group = GroupState(0, "t", 7, n=2, extra=1)
    group.begin()
    assert group.end(ended(0, "env_error", "env")) is None
    assert group.end(ended(1, "env_error", "env")) == Start(1, 1)


def test_a_second_valid_end_in_the_same_moment_does_not_grow_the_group() -> None:
    group = GroupState(0, "t", 7, n=1, extra=1)
    group.begin()
    group.end(ended(1))
    assert group.complete and group.end(ended(0, tokens=4)) is None
    result = group.result()
    assert [e.index for e in result.episodes] == [1] and result.wasted_tokens == 4


def test_what_calls_threw_away_is_waste_of_a_group_that_has_all_its_episodes() -> None:
    group = GroupState(0, "t", 7, n=1)
    group.begin()
    calls = [TurnRecord(prompt_tokens=3, sampled=2, thrown=5), TurnRecord(prompt_tokens=7, sampled=2)]
    group.end(msgspec.structs.replace(ended(0), record=calls))
    assert group.result().wasted_tokens == 5


def test_a_group_is_not_given_out_while_something_of_it_runs() -> None:
    group = GroupState(3, "t", 7, n=1, extra=1)
    group.begin()
    group.end(ended(0))
    with pytest.raises(ValueError, match="group 3 has 1 of 1 and 1 running"):
        group.result()


def test_an_end_that_nobody_waits_for_is_an_error() -> None:
    group = GroupState(3, "t", 7, n=1)
    group.begin()
    with pytest.raises(ValueError, match="episode 4 of group 3"):
        group.end(ended(4))


@pytest.mark.parametrize(("cause", "error"), [("env", EnvError), ("agent", AgentError), ("infra", RockrollError)])
def test_the_budget_raises_the_most_frequent_cause(cause: Cause, error: type[Exception]) -> None:
    budget = Budget(3)
    other: Cause = "infra" if cause != "infra" else "env"
    for spoiled in (ended(0, "env_error", cause, detail="no disk"), ended(1, "infra_error", other, detail="rare")):
        budget.spend(spoiled)
    budget.spend(ended(0, "env_error", cause, detail="no disk"))
    with pytest.raises(error, match=rf"more than 3 episodes.*3 of 4 for {cause}; most often: no disk"):
        budget.spend(ended(2, "env_error", cause, detail="no disk"))


def test_what_was_kept_is_not_started_again_and_its_replacements_go_on_counting() -> None:
    group = GroupState(0, "t", 7, 3)
    group.keep([ended(1, "env_error", "env"), ended(1, "env_error", "env"), ended(0)])
    assert group.begin() == [Start(1, 2), Start(2, 0)]
    for index in (1, 2):
        group.end(ended(index))
    result = group.result()
    assert [e.index for e in result.episodes] == [0, 1, 2]
    assert result.discarded == {"env_error": 2} and result.wasted_tokens == 4


def test_a_group_that_was_kept_whole_starts_nothing() -> None:
    group = GroupState(0, "t", 7, 2, extra=1)
    group.keep([ended(2), ended(0)])
    assert group.begin() == [] and group.complete
    assert [e.index for e in group.result().episodes] == [0, 2]
