"""Rewards and values to advantages and returns, token by token: against plain Python and by hand."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch, TrainSample, Turn
from rockroll.train.batch import Row, make_row
from rockroll.train.config import TrainConfig
from rockroll.train.credit import assign
from rockroll.train.critic import CriticConfig, critic_config
from rockroll.train.estimates import estimates, explained_variance, token_rewards, whiten
from rockroll.train.loss import value_loss
from rockroll.train.unbranched import unbranched

PPO = TrainConfig(algorithm="ppo", gamma=0.5, gae_lambda=0.5)


def sample(
    mask: str, *turns: Turn, values: list[float] | None = None, episode: int = 0, reward: float = 0.0
) -> TrainSample:
    trained = [c == "x" for c in mask]
    return TrainSample(
        ids=[1] * len(mask),
        mask=trained,
        logprobs=[-1.0 if m else 0.0 for m in trained],
        versions=[0 if m else -1 for m in trained],
        episode=episode,
        group=0,
        reward=reward,
        turns=list(turns),
        values=values or [],
    )


def rows_of(*samples: TrainSample) -> tuple[TrainBatch, list[Row]]:
    made = [
        make_row(s, logprobs=s.logprobs, number=i, episode=s.episode, vocabulary=10, context=64)
        for i, s in enumerate(samples)
    ]
    return TrainBatch(step=3, samples=list(samples)), [row for row in made if row is not None]


# ---------------------------------------------------------------------------------------------------------------
# Which token earned what
# ---------------------------------------------------------------------------------------------------------------


def test_an_outcome_reward_stands_on_the_last_trained_token_whatever_comes_after_it():
    assert token_rewards(sample("..xx.x..", reward=2.0)) == [0, 0, 2.0]


def test_each_turns_reward_stands_on_its_own_last_trained_token():
    turns = [Turn(number=0, start=1, end=3, reward=0.25), Turn(number=1, start=5, end=8, reward=1.0)]
    assert token_rewards(sample(".xx..xx..", *turns)) == [0, 0.25, 0, 1.0]


def test_the_reward_of_a_turn_that_is_not_trained_goes_to_the_token_that_led_there_and_else_to_nobody():
    turns = [
        Turn(number=0, start=1, end=2, reward=8.0),  # before anything was sampled
        Turn(number=1, start=2, end=4, reward=0.5),
        Turn(number=2, start=5, end=7, reward=1.0),  # its tokens are masked
    ]
    assert token_rewards(sample("..xx....", *turns)) == [0, 1.5]


def test_estimates_skip_what_was_not_sampled_by_hand():
    batch, rows = rows_of(sample(".x..x.x", reward=1.0, values=[0.5, 0.25, 0.75]))
    # delta: 0.5*0.25-0.5 = -0.375; 0.5*0.75-0.25 = 0.125; 1-0.75 = 0.25; decay gamma*lambda = 0.25
    advantages = [-0.375 + 0.25 * (0.125 + 0.25 * 0.25), 0.125 + 0.25 * 0.25, 0.25]
    [(found, returns)] = estimates(batch, rows, PPO)
    assert found.tolist() == pytest.approx(advantages)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(advantages, [0.5, 0.25, 0.75], strict=True)])


def test_values_are_needed_for_every_trained_token_and_one_branch_for_each_episode():
    batch, rows = rows_of(sample(".xx", values=[0.5]))
    with pytest.raises(TrainError, match="sample 0 has 2 of them and 1 values"):
        estimates(batch, rows, PPO)
    batch, rows = rows_of(sample(".x", values=[0.5]), sample(".xx", values=[0.5, 0.5]))
    with pytest.raises(TrainError, match="unbranched episodes only; episode 0 has two branches"):
        estimates(batch, rows, PPO)


# ---------------------------------------------------------------------------------------------------------------
# Whitening
# ---------------------------------------------------------------------------------------------------------------


def test_whitening_is_over_the_tokens_that_count_of_all_rows():
    rows = [torch.tensor([1.0, 3.0, 100.0]), torch.tensor([5.0])]
    found = whiten(rows, [torch.tensor([True, True, False]), None])
    std = statistics.pstdev([1, 3, 5])
    assert found[0].tolist() == pytest.approx([-2 / std, 0, 97 / std]) and found[1].tolist() == pytest.approx([2 / std])


def test_whitening_equal_tokens_one_token_or_rows_that_are_all_masked_gives_no_noise():
    none = torch.tensor([False, False])
    assert [x.tolist() for x in whiten([torch.tensor([0.1, 0.1]), torch.tensor([0.1])], [None, None])] == [[0, 0], [0]]
    assert whiten([torch.tensor([7.0])], [None])[0].tolist() == [0.0]
    assert whiten([torch.tensor([1.0, 2.0])], [none])[0].tolist() == [0.0, 0.0]
    found = whiten([torch.tensor([9.0, 9.0]), torch.tensor([1.0, -1.0])], [none, None])
    assert found[1].tolist() == pytest.approx([1.0, -1.0])


@given(st.lists(st.lists(st.tuples(st.integers(-50, 50), st.booleans()), min_size=1, max_size=6), max_size=5))
def test_whitening_is_that_of_plain_python(rows: list[list[tuple[int, bool]]]):
    counted = [x for row in rows for x, kept in row if kept]
    if not rows:
        return
    found = whiten(
        [torch.tensor([float(x) for x, _ in row]) for row in rows], [torch.tensor([k for _, k in row]) for row in rows]
    )
    for row, got in zip(rows, found, strict=True):
        if len(set(counted)) < 2:
            assert got.tolist() == [0.0] * len(row)
        else:
            mean, std = statistics.fmean(counted), statistics.pstdev(counted)
            assert got.tolist() == pytest.approx([(x - mean) / std for x, _ in row], rel=1e-4, abs=1e-4)


def test_credit_whitens_over_the_batch_and_reports_what_was_before():
    batch, rows = rows_of(
        sample(".xx", reward=1.0, values=[0.0, 0.0]), sample(".x", episode=1, reward=0.0, values=[0.5])
    )
    metrics = assign(batch, rows, TrainConfig(algorithm="ppo", gae_lambda=1.0))
    raw = [1.0, 1.0, -0.5]
    mean, std = statistics.fmean(raw), statistics.pstdev(raw)
    assert torch.cat([row.advantages for row in rows]).tolist() == pytest.approx([(x - mean) / std for x in raw])
    assert metrics["advantage/mean"] == pytest.approx(0.5) and metrics["advantage/min"] == pytest.approx(-1 / std)


# ---------------------------------------------------------------------------------------------------------------
# The critic's loss
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.1, 0.0, 1.0, 0.405, -0.9),  # within the bound: the plain error
        (0.5, 0.0, 1.0, 0.32, 0.0),  # moved further than 0.2 towards the target: no more use of it
        (-0.5, 0.0, 1.0, 1.125, -1.5),  # moved away: the larger error counts, with its gradient
        (1.0, 0.0, 1.0, 0.32, 0.0),
    ],
)
def test_the_value_loss_by_hand(value: float, old: float, target: float, loss: float, gradient: float):
    v = torch.tensor([value], requires_grad=True)
    found, clipped = value_loss(v, torch.tensor([old]), torch.tensor([target]), clip=0.2)
    found.sum().backward()
    assert v.grad is not None
    assert found.item() == pytest.approx(loss) and v.grad.item() == pytest.approx(gradient)
    assert clipped.item() == (gradient == 0)


def test_without_a_bound_the_value_loss_is_half_the_square():
    found, clipped = value_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0)
    assert found.item() == 2.0 and not clipped.item()


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=8), st.floats(0.01, 2))
def test_the_value_loss_is_that_of_plain_python(tokens: list[tuple[float, float, float]], clip: float):
    found, _ = value_loss(*(torch.tensor(x, dtype=torch.float64) for x in zip(*tokens, strict=True)), clip=clip)
    expected = [max((v - r) ** 2, (min(max(v, o - clip), o + clip) - r) ** 2) / 2 for v, o, r in tokens]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_explained_variance_by_hand():
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(returns + 5, returns) == pytest.approx(1.0)  # a constant error explains all that varies
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


# ---------------------------------------------------------------------------------------------------------------
# Which episodes it takes, and its settings
# ---------------------------------------------------------------------------------------------------------------


def test_branched_episodes_are_left_out_and_counted_and_a_branch_without_trained_tokens_alone():
    line, branch, other = sample(".x", episode=0), sample(".xx", episode=1), sample(".x", episode=1)
    silent, mute = sample("...", episode=0), sample("..", episode=2)
    kept, branched = unbranched(TrainBatch(step=0, samples=[line, branch, other, silent, mute]))
    assert kept.samples == [line] and branched == 1
    with pytest.raises(TrainError, match=r"step 0: all 1 episodes are branched.*only adds to its conversation"):
        unbranched(TrainBatch(step=0, samples=[branch, other]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"critic": CriticConfig()}, "critic is of use to advantage: gae alone, as in algorithm: ppo; got group"),
        ({"algorithm": "ppo", "kl": 0.1, "kl_in": "reward"}, "kl_in: reward is not for advantage gae"),
        ({"algorithm": "ppo", "gae_lambda": 1.5}, r"gae_lambda must be in \[0, 1\]; got 1.5"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train critic clip must be at least 0; got -1"):
        CriticConfig(clip=-1)
    with pytest.raises(ValueError, match="train critic epochs must be at least 1; got 0"):
        CriticConfig(epochs=0)


def test_the_critic_is_a_trainer_of_its_own_and_else_as_the_policys():
    policy = TrainConfig(algorithm="ppo", ranks=2, zero_stage=2, minibatches=3, lr=1e-4, model="m", seed=5)
    assert policy.has_critic and not TrainConfig().has_critic
    critic = critic_config(policy, steps=10)
    assert not critic.has_critic and critic.objective == "value"
    assert (critic.lr, critic.ranks, critic.zero_stage, critic.minibatches, critic.model) == (1e-5, 2, 2, 3, "m")
    assert critic.schedule_updates == 30
    own = TrainConfig(algorithm="ppo", critic=CriticConfig(lr=1e-3, zero_stage=0, epochs=2, model="v"))
    critic = critic_config(own, steps=10)
    assert (critic.lr, critic.zero_stage, critic.epochs, critic.model, critic.schedule_updates) == (1e-3, 0, 2, "v", 20)
