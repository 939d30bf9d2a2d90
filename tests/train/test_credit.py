"""Who gets what advantage: per episode or per turn, never per sample."""

from dataclasses import replace
from pathlib import Path

import pytest

from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch, TrainSample, Turn
from rockroll.train.batch import Row, make_row
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign

CONFIG = TrainConfig(std_normalisation=False)


def sample(episode: int, reward: float, *turns: Turn, group: int = 0, mask: str = ".xx.x") -> TrainSample:
    trained = [c == "x" for c in mask]
    return TrainSample(
        ids=[1] * len(mask),
        mask=trained,
        logprobs=[-1.0 if m else 0.0 for m in trained],
        versions=[0 if m else -1 for m in trained],
        episode=episode,
        group=group,
        reward=reward,
        turns=list(turns),
    )


def advantages(
    config: TrainConfig, *samples: TrainSample, penalties: dict[int, float] | None = None
) -> list[list[float]]:
    batch = TrainBatch(step=0, samples=list(samples))
    rows: list[Row] = []
    for number, each in enumerate(samples):
        row = make_row(each, number=number, episode=each.episode, vocabulary=10, context=20)
        assert row is not None
        rows.append(row)
    assign(batch, rows, config, penalties)
    return [row.advantages.tolist() for row in rows]


def test_branches_share_their_episodes_advantage_and_count_once():
    found = advantages(CONFIG, sample(0, 1.0), sample(0, 1.0, mask=".x"), sample(1, 0.0))
    assert found == [[0.5] * 3, [0.5], [-0.5] * 3]


def test_penalties_are_taken_from_rewards_before_they_are_compared():
    assert advantages(CONFIG, sample(0, 1.0), sample(1, 1.0), penalties={0: 0.5}) == [[-0.25] * 3, [0.25] * 3]


@pytest.mark.parametrize(
    ("algorithm", "first"), [("rloo", 0.75), ("reinforce", 1.0), ("reinforce_pp", 1.0), ("dapo", 1.0)]
)
def test_each_advantage_by_hand(algorithm: str, first: float):
    config = TrainConfig(algorithm=algorithm)  # pyright: ignore[reportArgumentType]
    rewards = [1.0, 0.5, 0.0] if algorithm == "rloo" else [1.0, 0.0]
    found = advantages(config, *(sample(i, r) for i, r in enumerate(rewards)))
    assert found[0] == pytest.approx([first] * 3, abs=1e-5)


def test_turn_returns_are_discounted_and_compared_within_the_group():
    config = replace(TrainConfig(algorithm="turn_returns", gamma=0.5), std_normalisation=False)
    one = sample(0, 1.0, Turn(number=0, start=1, end=3), Turn(number=1, start=4, end=5, reward=1.0))
    two = sample(1, 0.0, Turn(number=0, start=1, end=3), Turn(number=1, start=4, end=5))
    # returns: 0.5, 1.0, 0, 0; mean 0.375
    assert advantages(config, one, two) == [pytest.approx([0.125, 0.125, 0.625]), pytest.approx([-0.375] * 3)]


def test_gigpo_compares_turns_that_began_in_the_same_state():
    config = replace(TrainConfig(algorithm="gigpo", step_weight=2.0), std_normalisation=False)
    one = sample(
        0, 1.0, Turn(number=0, start=1, end=3, state="a"), Turn(number=1, start=4, end=5, state="b", reward=1.0)
    )
    two = sample(1, 0.0, Turn(number=0, start=1, end=3, state="a"), Turn(number=1, start=4, end=5, state="c"))
    # episode ±0.5; state a: returns 1 and 0, ±0.5 · 2; b and c were seen once: 0
    assert advantages(config, one, two) == [pytest.approx([1.5, 1.5, 0.5]), pytest.approx([-1.5, -1.5, -0.5])]


def test_equal_states_of_different_tasks_are_not_compared():
    config = replace(TrainConfig(algorithm="gigpo"), std_normalisation=False)
    samples = [
        sample(i, float(i % 2), Turn(number=0, start=1, end=5, state="a", reward=float(i)), group=i // 2)
        for i in range(4)
    ]
    # episodes ±0.5 in each group; turns 0, 1 and 2, 3: ±0.5 within their groups, not against 1.5
    assert [row[0] for row in advantages(config, *samples)] == [-1.0, 1.0, -1.0, 1.0]


def test_a_trained_token_in_no_turn_is_refused():
    config = TrainConfig(algorithm="turn_returns")
    with pytest.raises(TrainError, match="token 4 of sample 0 is in none"):
        advantages(config, sample(0, 1.0, Turn(number=0, start=1, end=3)))


def test_turns_that_branches_do_not_agree_on_are_refused():
    config = TrainConfig(algorithm="turn_returns")
    turn = Turn(number=0, start=1, end=5)
    with pytest.raises(TrainError, match="turn 0 of episode 0"):
        advantages(config, sample(0, 1.0, turn), sample(0, 1.0, Turn(number=0, start=1, end=5, reward=2.0)))


def test_an_algorithm_of_turns_without_turns_says_so():
    with pytest.raises(TrainError, match="advantage gigpo needs the turns"):
        advantages(TrainConfig(algorithm="gigpo"), sample(0, 1.0), sample(1, 0.0))


def test_what_the_recipe_sets_overrules_the_algorithm(tmp_path: Path):
    config = TrainConfig(algorithm="gspo", clip_high=0.01)
    assert (config.clip_low, config.clip_high, config.ratio_level) == (3e-4, 0.01, "geometric")
