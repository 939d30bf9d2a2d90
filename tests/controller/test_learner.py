"""Policy and critic together, as the loop sees them. Real trainers of 40,000 parameters, in this process."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from rockroll.controller.learner import Learner
from rockroll.controller.run_dir import RunDir
from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch, TrainSample
from rockroll.train.config import TrainConfig
from rockroll.train.critic import CriticConfig, critic_config
from rockroll.train.trainer import RankTrainer
from tests.train.digests import digest_of

VOCABULARY = 32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    critic = CriticConfig(lr=1e-2, head_start=1)
    return TrainConfig(
        model=str(folder), lr=1e-2, threads=1, device="cpu", algorithm="ppo", critic=critic, minibatches=2
    )


class Here:
    """A trainer of one rank in this process, called as its client is."""

    def __init__(self, config: TrainConfig) -> None:
        self.rank = RankTrainer(config)

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return getattr(self.rank, name)(*arguments)

        return call

    @property
    def digest(self) -> str:
        return digest_of(self.rank)


class Both:
    """A learner and the trainers under it."""

    def __init__(self, config: TrainConfig) -> None:
        self.policy, self.critic = Here(config), Here(critic_config(config, 4))
        self.learner = Learner(config, self.policy, self.critic)  # pyright: ignore[reportArgumentType]

    @property
    def digests(self) -> tuple[str, str]:
        return self.policy.digest, self.critic.digest


def batch(step: int, *, branched: int = 1) -> TrainBatch:
    """Lone episodes of 12 tokens, one sampled in two; the first `branched` of them have two branches."""
    draw = random.Random(step)
    samples = []
    for episode in range(8):
        for _ in range(2 if episode < branched else 1):
            mask = [False] + [draw.random() < 0.5 for _ in range(10)] + [True]
            samples.append(
                TrainSample(
                    ids=[draw.randrange(VOCABULARY) for _ in mask],
                    mask=mask,
                    logprobs=[-3.5 if m else 0.0 for m in mask],
                    versions=[0 if m else -1 for m in mask],
                    episode=episode,
                    group=episode,
                    reward=float(episode % 2),
                )
            )
    return TrainBatch(step=step, samples=samples)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir(tmp_path / "run", resume=False) as run:
        yield run


async def test_the_critic_learns_first_and_alone_where_it_has_a_head_start(config: TrainConfig):
    both = Both(config)
    before = both.digests
    row = await both.learner.worst_case(0)
    assert both.digests == before
    assert row["memory/worst_case_tokens"] == 8192 and {"memory/trainer_peak_mb", "memory/critic_peak_mb"} <= set(row)

    first = await both.learner.step(batch(1))
    assert first.version == 1
    assert both.policy.digest == before[0] and both.critic.digest != before[1]
    assert first.metrics["episodes/branched"] == 1
    assert {"critic/value", "critic/explained_variance", "critic/grad_norm", "critic/lr", "time/critic_s"} <= set(
        first.metrics
    )
    assert "loss/policy" not in first.metrics and "critic/tokens/trained" not in first.metrics

    second = await both.learner.step(batch(2))
    assert second.version == 2 and both.policy.digest != before[0]
    assert "loss/policy" in second.metrics and second.metrics["loss/updates"] == 2


async def test_saved_and_loaded_both_go_on_bit_equal_and_are_pruned_together(config: TrainConfig, run: RunDir):
    straight = Both(config)
    for step in (1, 2):
        await straight.learner.step(batch(step))
        await straight.learner.save(run, step)
    assert run.steps() == [1, 2]
    after = Both(config)
    await after.learner.load(run, 2)
    for both in (straight, after):
        await both.learner.step(batch(3))
    assert after.digests == straight.digests
    run.prune(1)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step_2", "step_2.critic"]

    (run.critic_checkpoint(2) / "trainer.json").unlink()
    with pytest.raises(TrainError, match=r"step_2\.critic is no complete checkpoint"):
        await after.learner.load(run, 2)


async def test_a_batch_of_branched_episodes_alone_is_refused_and_changes_nothing(config: TrainConfig):
    both = Both(config)
    before = both.digests
    with pytest.raises(TrainError, match="all 8 episodes are branched, and GAE needs one line"):
        await both.learner.step(batch(1, branched=8))
    assert both.digests == before


async def test_without_a_critic_a_batch_goes_to_the_policy_as_it_is(config: TrainConfig):
    plain = replace(config, algorithm="reinforce", advantage="reward", surrogate="plain", critic=None)
    policy = Here(plain)
    report = await Learner(plain, policy).step(batch(1))  # pyright: ignore[reportArgumentType]
    given = msgspec.structs.replace(batch(1))
    assert report.metrics["tokens/trained"] == sum(sum(s.mask) for s in given.samples)
    assert not any(name.startswith("critic/") for name in report.metrics)


async def test_advantages_are_told_of_every_sample_or_of_none(config: TrainConfig):
    critic = replace(config.critic, head_start=0)  # pyright: ignore[reportArgumentType, reportCallIssue]
    both = Both(replace(config, critic=critic))
    given = msgspec.structs.replace(batch(1, branched=0), spans=4)
    report = await both.learner.step(given)
    assert len(report.advantages) == len(given.samples)
    masked = msgspec.structs.replace(given.samples[0], mask=[False] * 12, versions=[-1] * 12)
    given = msgspec.structs.replace(given, step=2, samples=[masked, *given.samples[1:]])
    assert (await both.learner.step(given)).advantages == []
