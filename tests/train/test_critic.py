"""The critic: a trainer whose model ends in one number. Its gradients, its learning, its checkpoints."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.critic import CriticConfig, critic_config
from rockroll.train.trainer import RankTrainer
from rockroll.train.unbranched import unbranched
from tests.train.digests import digest_of

from .gradient_worker import gradient
from .test_gradient import assert_same, run_ranks

Batch = Callable[..., TrainBatch]


@pytest.fixture(scope="module")
def value_path(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A value model whose head is not 0, so that its body has a gradient."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    folder = tmp_path_factory.mktemp("value")
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(model_path, num_labels=1)
    model = AutoModelForTokenClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ppo(config: TrainConfig) -> TrainConfig:
    return TrainConfig(
        model=config.model, lr=1e-2, threads=1, device="cpu", algorithm="ppo", critic=CriticConfig(lr=1e-2)
    )


@pytest.fixture
def valued(batch: Batch) -> Callable[..., TrainBatch]:
    """A batch of unbranched episodes with made-up values."""

    def make(step: int = 0) -> TrainBatch:
        draw = random.Random(step)
        given, _ = unbranched(batch(step))
        samples = [
            msgspec.structs.replace(s, values=[draw.gauss(0.3, 0.2) for m in s.mask if m]) for s in given.samples
        ]
        return msgspec.structs.replace(given, samples=samples)

    return make


def plain_estimates(config: TrainConfig, rewards: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """The sum of the definition (arXiv 1506.02438, eq. 16)."""
    following = [*values[1:], 0.0]
    deltas = [r + config.gamma * f - v for r, v, f in zip(rewards, values, following, strict=True)]
    decay = config.gamma * config.gae_lambda
    advantages = [sum(decay ** (j - i) * deltas[j] for j in range(i, len(deltas))) for i in range(len(deltas))]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@pytest.mark.parametrize("budget", [8192, 100])
def test_its_gradient_is_that_of_the_formula_for_any_micro_batches(
    ppo: TrainConfig, valued: Batch, value_path: Path, budget: int
):
    from transformers import AutoModelForTokenClassification

    config = replace(ppo, gamma=0.9, critic=CriticConfig(model=str(value_path), tokens_per_microbatch=budget))
    given = valued()
    model = AutoModelForTokenClassification.from_pretrained(value_path).eval()
    losses = []
    for sample in given.samples:
        trained = [i for i, m in enumerate(sample.mask) if m]
        rewards = [0.0] * (len(trained) - 1) + [sample.reward]
        _, returns = plain_estimates(config, rewards, sample.values)
        out = model(torch.tensor([sample.ids])).logits[0, :, 0]
        for i, old, target in zip(trained, sample.values, returns, strict=True):
            near = torch.clamp(out[i - 1], old - 0.2, old + 0.2)
            losses.append(torch.maximum((out[i - 1] - target) ** 2, (near - target) ** 2) / 2)
    torch.stack(losses).mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(gradient(RankTrainer(critic_config(config, 1)), given), expected)


def test_the_policys_gradient_with_its_values_is_that_of_the_formula(ppo: TrainConfig, valued: Batch):
    from transformers import AutoModelForCausalLM

    config, given = replace(ppo, gamma=0.9, correction="off"), valued()
    model = AutoModelForCausalLM.from_pretrained(ppo.model).eval()
    advantages, chosen = [], []
    for sample in given.samples:
        trained = [i for i, m in enumerate(sample.mask) if m]
        found, _ = plain_estimates(config, [0.0] * (len(trained) - 1) + [sample.reward], sample.values)
        logp = torch.log_softmax(model(torch.tensor([sample.ids])).logits[0], -1)
        advantages += found
        chosen += [logp[i - 1, sample.ids[i]] for i in trained]
    raw = torch.tensor(advantages, dtype=torch.float64)
    white = ((raw - raw.mean()) / raw.std(unbiased=False)).float()
    (-(white * torch.stack(chosen)).mean()).backward()  # at ratio 1 nothing is clipped
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(gradient(RankTrainer(config), given), expected)


def test_it_says_0_at_first_and_learns_what_the_returns_are(ppo: TrainConfig, valued: Batch):
    drawn = torch.get_rng_state()
    critic = RankTrainer(critic_config(ppo, 20))
    assert torch.equal(torch.get_rng_state(), drawn)
    given = valued()
    first = critic.values(given)
    assert [len(v) for v in first] == [sum(s.mask) for s in given.samples] and not any(map(any, first))
    for step in range(12):
        samples = [
            msgspec.structs.replace(s, values=v) for s, v in zip(given.samples, critic.values(given), strict=True)
        ]
        metrics = critic.step(msgspec.structs.replace(given, step=step, samples=samples)).metrics
    assert metrics["loss/explained_variance"] > 0.5, metrics
    assert metrics["loss/value_mean"] == pytest.approx(metrics["loss/return_mean"], abs=0.2)


def test_a_saved_critic_goes_on_bit_equal_and_is_a_model_that_transformers_loads(
    ppo: TrainConfig, valued: Batch, tmp_path: Path
):
    from transformers import AutoModelForTokenClassification

    config = critic_config(ppo, 4)
    straight = RankTrainer(config)
    for step in range(2):
        straight.step(valued(step))
    straight.save(str(tmp_path / "step_2"))
    after = RankTrainer(config)
    assert after.load(str(tmp_path / "step_2")) == 2
    given = valued(7)
    assert after.values(given) == straight.values(given)
    for trainer in (straight, after):
        trainer.step(valued(2))
    assert digest_of(after) == digest_of(straight)

    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "step_2" / "model").eval()
    before = RankTrainer(critic_config(replace(ppo, critic=CriticConfig(model=str(tmp_path / "step_2" / "model"))), 4))
    for sample, values in zip(given.samples, before.values(given), strict=True):
        out = model(torch.tensor([sample.ids])).logits[0, :, 0]
        assert values == pytest.approx([float(out[i - 1]) for i, m in enumerate(sample.mask) if m], abs=1e-5)


def test_its_worst_case_and_a_step_without_learning_change_nothing(ppo: TrainConfig, valued: Batch):
    critic, policy = RankTrainer(critic_config(ppo, 4)), RankTrainer(ppo)
    for trainer in (critic, policy):
        weights = digest_of(trainer)
        assert trainer.worst_case(0).length == 128
        report = trainer.step(msgspec.structs.replace(valued(), learn=False))
        assert digest_of(trainer) == weights
        assert report.version == trainer.version == 1 and trainer.updates == 0


def test_values_are_refused_by_a_policy(ppo: TrainConfig, valued: Batch):
    with pytest.raises(TrainError, match="values are a critic's to tell; this trainer's objective is policy"):
        RankTrainer(ppo).values(valued())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_have_its_gradient_of_one_at_every_stage(
    ppo: TrainConfig, valued: Batch, value_path: Path, tmp_path: Path, stage: int
):
    critic = CriticConfig(model=str(value_path), tokens_per_microbatch=100)
    one = critic_config(replace(ppo, critic=critic), 1)
    two = replace(one, ranks=2, zero_stage=stage)  # pyright: ignore[reportArgumentType]
    assert_same(run_ranks(two, valued(), tmp_path), gradient(RankTrainer(one), valued()))
