"""sft, dpo and distill: the arithmetic against plain Python and by hand, and what a step does. Real DeepSpeed."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch, TrainSample
from rockroll.train.config import TrainConfig
from rockroll.train.divergence import divergences
from rockroll.train.preference import dpo
from rockroll.train.teacher import check_tokenizer
from rockroll.train.trainer import RankTrainer
from tests.train.conftest import VOCABULARY

Batch = Callable[..., TrainBatch]


# ------------------------------------------------------------------------------------------------- arithmetic


def test_dpo_by_hand():
    """β 0.5: rewards 0.5 · (-1 - -3) = 1 and 0.5 · (-4 - -2) = -1; the loss is -log σ(2)."""
    loss, chosen, rejected = dpo(*(torch.tensor([x]) for x in (-1.0, -4.0, -3.0, -2.0)), beta=0.5)
    assert (float(chosen), float(rejected)) == (1.0, -1.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)))


def test_dpo_is_log_2_where_the_policy_is_the_reference_and_stays_finite_far_from_it():
    one = torch.tensor([-7.0, -900.0])
    assert dpo(one, one - 3, one, one - 3, beta=0.1)[0].tolist() == pytest.approx([math.log(2)] * 2)
    far = dpo(torch.tensor([-1e4]), torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([-1e4]), beta=1.0)[0]
    assert float(far) == pytest.approx(2e4)


def test_divergences_are_the_sums_over_the_vocabulary():
    rng = random.Random(3)
    ours, theirs = ([[rng.uniform(-3, 3) for _ in range(5)] for _ in range(4)] for _ in range(2))

    def probabilities(row: list[float]) -> list[float]:
        total = sum(math.exp(x) for x in row)
        return [math.exp(x) / total for x in row]

    reverse, forward = divergences(torch.tensor(ours), torch.tensor(theirs))
    for i in range(4):
        p, q = probabilities(ours[i]), probabilities(theirs[i])
        assert float(reverse[i]) == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-6)
        assert float(forward[i]) == pytest.approx(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)), abs=1e-6)


def test_divergences_by_hand():
    """p = (1/2, 1/2), q = (3/4, 1/4): KL(p, q) = ½ ln(4/3), KL(q, p) = ¾ ln(3/2) + ¼ ln(1/2)."""
    reverse, forward = divergences(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    assert float(reverse) == pytest.approx(0.5 * math.log(4 / 3))
    assert float(forward) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_an_output_layer_that_is_padded_further_changes_no_divergence():
    ours, theirs = torch.randn(3, 6), torch.randn(3, 6)
    wide = torch.cat([theirs, torch.full((3, 2), 9.0)], -1)
    for a, b in zip(divergences(ours, theirs), divergences(ours, wide), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------- steps


def written(step: int = 0, *, pairs: int = 0, seed: int = 0) -> TrainBatch:
    """Examples as data/ deals them: no log-probs; pairs, or 12 conversations."""
    rng = random.Random(f"{seed}/{step}")
    samples = []
    for n in range(2 * pairs or 12):
        length = rng.randint(6, 30)
        ids = [rng.randrange(VOCABULARY) for _ in range(length)]
        mask = [False] * 3 + [True] * (length - 3)
        group, reward = (n // 2, float(n % 2 == 0)) if pairs else (n, 0.0)
        samples.append(TrainSample(ids=ids, mask=mask, episode=n, group=group, reward=reward))
    return TrainBatch(step=step, samples=samples)


def answers(trainer: RankTrainer, batch: TrainBatch) -> list[float]:
    """log p of each sample's answer, by the trainer's own whole-sequence log-probs."""
    return [sum(x for x, m in zip(trainer.logprobs(s.ids), s.mask[1:], strict=True) if m) for s in batch.samples]


def test_sft_is_the_mean_over_tokens_of_minus_log_p_and_goes_down(config: TrainConfig):
    given = written()
    trainer = RankTrainer(replace(config, objective="sft", tokens_per_microbatch=100))
    tokens = sum(sum(s.mask) for s in given.samples)
    expected = -sum(answers(trainer, given)) / tokens
    assert trainer.measure(given)["loss/sft"] == pytest.approx(expected, abs=1e-5)
    assert trainer.version == 0  # measuring learns nothing
    losses = [trainer.step(given).metrics for _ in range(5)]
    assert losses[0]["loss/sft"] == pytest.approx(expected, abs=1e-5)
    assert losses[0]["tokens/trained"] == tokens
    assert losses[-1]["loss/sft"] < expected - 0.1
    assert losses[-1]["loss/token_accuracy"] > losses[0]["loss/token_accuracy"]


@pytest.mark.parametrize("budget", [60, 4096])
def test_dpo_is_eq_7_whatever_the_micro_batches(config: TrainConfig, budget: int):
    given = written(pairs=5)
    trainer = RankTrainer(replace(config, objective="dpo", dpo_beta=0.3, tokens_per_microbatch=budget))
    packs = trainer.share.micro_batches(trainer._rows(given))
    assert len(packs) > 2 if budget == 60 else len(packs) <= 2
    reference = answers(trainer, given)
    first = trainer.step(given).metrics
    assert first["loss/dpo"] == pytest.approx(math.log(2), abs=1e-5) and first["loss/margin"] == pytest.approx(
        0, abs=1e-4
    )
    apart = [0.3 * (now - then) for now, then in zip(answers(trainer, given), reference, strict=True)]
    margins = [a - b for a, b in zip(apart[::2], apart[1::2], strict=True)]
    measured = trainer.measure(given)
    assert measured["loss/dpo"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 5, abs=1e-5)
    assert measured["loss/margin"] == pytest.approx(sum(margins) / 5, abs=1e-4)
    assert measured["loss/preference_accuracy"] == sum(m > 0 for m in margins) / 5
    assert measured["loss/reward_chosen"] == pytest.approx(sum(apart[::2]) / 5, abs=1e-4)


def test_dpo_learns_what_is_preferred_and_keeps_pairs_together_in_minibatches(config: TrainConfig):
    given = written(pairs=6)
    trainer = RankTrainer(replace(config, objective="dpo", minibatches=3, tokens_per_microbatch=80))
    metrics = [trainer.step(given).metrics for _ in range(4)]
    assert metrics[-1]["loss/preference_accuracy"] == 1.0
    assert metrics[-1]["loss/margin"] > metrics[0]["loss/margin"] and metrics[-1]["loss/dpo"] < math.log(2)


@pytest.fixture(scope="module")
def teacher(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape and tokenizer."""
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(11)
    model = LlamaForCausalLM(AutoConfig.from_pretrained(model_path))
    for p in model.parameters():
        p.data *= 2
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text((model_path / "tokenizer.json").read_text())
    return folder


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_distill_draws_the_student_to_the_teacher(config: TrainConfig, batch: Batch, teacher: Path, divergence: str):
    config = replace(config, objective="distill", teacher=str(teacher), divergence=divergence)  # pyright: ignore[reportArgumentType]
    trainer, given = RankTrainer(config), batch()
    metrics = [trainer.step(given).metrics for _ in range(8)]
    assert metrics[0]["loss/distill"] == metrics[0][f"loss/kl_{divergence}"]
    assert metrics[-1]["loss/distill"] < metrics[0]["loss/distill"] / 2
    assert 0 <= metrics[-1]["loss/agreement"] <= 1


def test_distilling_from_oneself_is_zero(config: TrainConfig, batch: Batch):
    trainer = RankTrainer(replace(config, objective="distill", teacher=config.model))
    metrics = trainer.measure(batch())
    assert metrics["loss/kl_reverse"] == metrics["loss/kl_forward"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss/agreement"] == 1.0


# ------------------------------------------------------------------------------------------------- refusals


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path):
    def folder(name: str, vocabulary: object, added: list[dict] | None = None) -> Path:
        (tmp_path / name).mkdir()
        text = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added or []})
        (tmp_path / name / "tokenizer.json").write_text(text)
        return tmp_path / name

    plain = folder("plain", {"a": 0, "b": 1})
    check_tokenizer(plain, folder("same", [["a", -1.0], ["b", -2.0]]))
    with pytest.raises(TrainError, match=r"'b' is id 1 in .*plain and 2 in .*other; take a teacher of the same family"):
        check_tokenizer(plain, folder("other", {"a": 0, "b": 2}))
    with pytest.raises(TrainError, match="'<end>' is id None"):
        check_tokenizer(plain, folder("more", {"a": 0, "b": 1}, [{"content": "<end>", "id": 2}]))
    with pytest.raises(TrainError, match="must be a readable tokenizer"):
        check_tokenizer(plain, tmp_path)


def test_batches_that_an_objective_cannot_learn_from_are_refused(config: TrainConfig):
    trainer = RankTrainer(replace(config, objective="dpo"))
    given = written(pairs=2)
    wrong = [
        (given.samples[:3], "in pairs, chosen before rejected; got 3"),
        ([given.samples[i] for i in (1, 0)], "the first has the higher reward"),
        ([given.samples[i] for i in (0, 3)], "share a group"),
        (
            [msgspec.structs.replace(s, mask=[False] * len(s.ids)) for s in given.samples],
            "need a token that is trained",
        ),
    ]
    for samples, says in wrong:
        with pytest.raises(TrainError, match=says):
            trainer.step(TrainBatch(step=0, samples=list(samples)))
    assert trainer.version == 0
    with pytest.raises(TrainError, match="0 logprobs"):  # nobody sampled these: no policy gradient without log-probs
        RankTrainer(config).step(given)
