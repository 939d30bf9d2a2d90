"""Each formula against plain Python floats, and cases worked by hand."""

import math
import random

import pytest
import torch

from rockroll.train.loss import importance_weights, k3, policy_loss, token_logprobs


def plain_logprobs(logits: list[float], temperature: float) -> list[float]:
    scaled = [x / temperature for x in logits]
    top = max(scaled)
    total = top + math.log(sum(math.exp(x - top) for x in scaled))
    return [x - total for x in scaled]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_and_entropy_are_those_of_the_tempered_softmax(temperature: float):
    rng = random.Random(1)
    rows = [[rng.gauss(0, 4) for _ in range(9)] for _ in range(5)]
    targets = [rng.randrange(9) for _ in rows]
    logp, entropy = token_logprobs(torch.tensor(rows), torch.tensor(targets), temperature)
    for i, row in enumerate(rows):
        expected = plain_logprobs(row, temperature)
        assert float(logp[i]) == pytest.approx(expected[targets[i]], abs=1e-5)
        assert float(entropy[i]) == pytest.approx(-sum(math.exp(x) * x for x in expected), abs=1e-5)


def test_entropy_has_a_gradient_only_when_asked():
    logits = torch.randn(3, 5, requires_grad=True)
    assert not token_logprobs(logits, torch.tensor([0, 1, 2]))[1].requires_grad
    assert token_logprobs(logits, torch.tensor([0, 1, 2]), entropy_gradient=True)[1].requires_grad


def test_low_precision_logits_are_summed_in_float32():
    logp, entropy = token_logprobs(torch.randn(3, 5).bfloat16(), torch.tensor([0, 1, 2]))
    assert logp.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 1.0, -1.28, True),  # good action, already more likely: stop at 1 + clip_high
        (0.5, 1.0, -0.5, False),  # good action, became less likely: full pull back
        (0.5, -1.0, 0.8, True),  # bad action, already less likely: stop at 1 - clip_low
        (1.5, -1.0, 1.5, False),  # bad action, became more likely: full push down
        (1.5, 0.0, 0.0, False),
    ],
)
def test_clipped_objective_by_hand(ratio: float, advantage: float, loss: float, clipped: bool):
    logp = torch.tensor([math.log(ratio) - 2.0], requires_grad=True)
    losses, flags = policy_loss(
        logp, torch.tensor([-2.0]), torch.tensor([advantage]), torch.ones(1), clip_low=0.2, clip_high=0.28
    )
    assert float(losses.detach()) == pytest.approx(loss, abs=1e-6)
    assert bool(flags) is clipped
    losses.sum().backward()
    assert logp.grad is not None
    assert float(logp.grad) == pytest.approx(0.0 if clipped else -ratio * advantage, abs=1e-6)


def test_importance_scales_loss_and_gradient():
    logp = torch.tensor([-1.0], requires_grad=True)
    losses, _ = policy_loss(
        logp, torch.tensor([-1.0]), torch.tensor([3.0]), torch.tensor([0.5]), clip_low=0.2, clip_high=0.2
    )
    losses.sum().backward()
    assert float(losses.detach()) == pytest.approx(-1.5)
    assert logp.grad is not None and float(logp.grad) == pytest.approx(-1.5)


def test_importance_is_trainer_over_engine_truncated_without_gradient():
    old = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    weights = importance_weights(old, torch.tensor([-1.0, -1.0 - math.log(5), -1.0 + math.log(4)]), cap=2.0)
    assert weights.tolist() == pytest.approx([1.0, 2.0, 0.25])
    assert not weights.requires_grad
    assert importance_weights(old.detach(), torch.tensor([-9.0, 0.0, 1.0]), cap=0).tolist() == [1, 1, 1]


def test_k3_is_zero_where_they_agree_and_positive_elsewhere():
    logp, reference = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0])
    expected = [math.exp(b - a) - 1 - (b - a) for a, b in zip(logp.tolist(), reference.tolist(), strict=True)]
    assert k3(logp, reference).tolist() == pytest.approx(expected)
    assert expected[0] == 0 and min(expected[1:]) > 0


def test_k3_averages_to_the_divergence():
    p, q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    estimate = k3(torch.tensor(p).log(), torch.tensor(q).log())
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float((torch.tensor(p) * estimate).sum()) == pytest.approx(exact, abs=1e-6)
