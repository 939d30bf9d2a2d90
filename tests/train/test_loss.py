"""Each formula against plain Python floats, and cases worked by hand."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rockroll.train import loss
from rockroll.train.algorithm import PRESETS, Correction, RatioLevel, Surrogate
from rockroll.train.loss import KLCoefficient, correction, k1, k2, k3, log_ratios, surrogate, token_logprobs


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("at_once", [1 << 24, 100, 1])
def test_the_gradients_are_those_of_the_plain_formula_however_many_rows_at_a_time(
    temperature: float, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss, "AT_ONCE", at_once)
    torch.manual_seed(0)
    targets, of_logp, of_entropy = torch.randint(0, 31, (7,)), torch.randn(7), torch.randn(7)
    plain, found = (3 * torch.randn(7, 31, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    logs = torch.log_softmax(plain.requires_grad_() / temperature, -1)
    chosen = logs.gather(-1, targets[:, None])[:, 0]
    (chosen * of_logp - (logs.exp() * logs).sum(-1) * of_entropy).sum().backward()
    logp, entropy = token_logprobs(found.requires_grad_(), targets, temperature, entropy_gradient=True)
    (logp * of_logp + entropy * of_entropy).sum().backward()
    assert torch.allclose(logp, chosen, atol=1e-6)
    assert plain.grad is not None and found.grad is not None
    assert torch.allclose(found.grad, plain.grad, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_other_tensor_is_as_large_as_the_logits_but_their_gradient(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """controller/one_gpu.py counts on it."""
    monkeypatch.setattr(loss, "AT_ONCE", 1000)
    made: list[tuple[int, torch.dtype]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if (
                isinstance(out, torch.Tensor)
                and out.untyped_storage().data_ptr() != logits.untyped_storage().data_ptr()
            ):
                made.append((out.untyped_storage().nbytes() // out.element_size(), out.dtype))
            return out

    logits = torch.randn(50, 300).to(dtype).requires_grad_()
    with Watch():
        logp, _ = token_logprobs(logits, torch.arange(50))
        logp.sum().backward()
    assert {size for size, kind in made if size > 1000} == {50 * 300}
    assert {kind for size, kind in made if size > 1000} == {dtype}


def test_low_precision_logits_are_summed_in_float32():
    logp, entropy = token_logprobs(torch.randn(3, 5).bfloat16(), torch.tensor([0, 1, 2]))
    assert logp.dtype == entropy.dtype == torch.float32


LOW, HIGH = 0.2, 0.28


def surrogate_of(ratio: float, advantage: float, **options: Any) -> tuple[float, bool, float]:
    """(loss, bounded, gradient by log-prob) of one token whose old log-prob is -2."""
    logp = torch.tensor([math.log(ratio) - 2.0], dtype=torch.float64, requires_grad=True)
    losses, flags = surrogate(
        logp, logp + 2.0, torch.tensor([advantage], dtype=torch.float64), **({"low": LOW, "high": HIGH} | options)
    )
    losses.sum().backward()
    assert logp.grad is not None
    return float(losses.detach()), bool(flags), float(logp.grad)


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
    got = surrogate_of(ratio, advantage, kind="clip")
    assert got == pytest.approx((loss, clipped, 0.0 if clipped else -ratio * advantage), abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "bounded"),
    [
        (5.0, -1.0, 3.0, True),  # a bad action that became far more likely pushes no harder than dual · A
        (2.0, -1.0, 2.0, False),
        (5.0, 1.0, -1.28, True),  # good actions: the usual clip
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, bounded: bool):
    got = surrogate_of(ratio, advantage, kind="clip", dual=3.0)
    assert got == pytest.approx((loss, bounded, 0.0 if bounded else -ratio * advantage), abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "bounded"),
    [(0.1, 1.0, 0.1, False), (3.0, 1.0, 3.0, False), (9.0, 1.0, 5.0, True), (9.0, -2.0, 5.0, True)],
)
def test_cispo_weighs_every_token_and_bounds_the_weight_not_the_gradient(
    ratio: float, advantage: float, weight: float, bounded: bool
):
    loss, flag, gradient = surrogate_of(ratio, advantage, kind="weight", low=1.0, high=4.0)
    assert gradient == pytest.approx(-weight * advantage)
    assert loss == pytest.approx(-weight * advantage * (math.log(ratio) - 2.0)) and flag is bounded


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"), [(0.1, 1.0, 1.0), (9.0, 1.0, 1.0), (0.1, -1.0, 0.1), (9.0, -1.0, 1.0)]
)
def test_topr_takes_good_answers_whole_and_bad_ones_as_far_as_they_are_still_likely(
    ratio: float, advantage: float, weight: float
):
    bounds = {key: value for key, value in PRESETS["topr"].items() if key.startswith("clip")}
    _, _, gradient = surrogate_of(
        ratio,
        advantage,
        kind="weight",
        low=bounds["clip_low"],
        high=bounds["clip_high"],
        low_negative=bounds["clip_low_negative"],
        high_negative=bounds["clip_high_negative"],
    )
    assert gradient == pytest.approx(-weight * advantage)


def test_plain_reinforce_ignores_the_ratio():
    assert surrogate_of(9.0, 2.0, kind="plain") == pytest.approx((-2.0 * (math.log(9) - 2.0), False, -2.0))


def plain_surrogate(ratio: float, logp: float, a: float, kind: str, low: float, high: float, dual: float) -> float:
    """The same in if-s."""
    if kind == "plain":
        return -a * logp
    bounded = min(max(ratio, 1 - low), 1 + high)
    if kind == "weight":
        return -bounded * a * logp
    value = min(ratio * a, bounded * a)
    return -(max(value, dual * a) if dual and a < 0 else value)


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-5, -0.01)), min_size=1, max_size=20),
    st.sampled_from(["clip", "weight", "plain"]),
    st.floats(0.01, 1),
    st.floats(0.01, 4),
    st.sampled_from([0.0, 1.5, 3.0]),
)
def test_surrogates_are_those_of_plain_python(
    tokens: list[tuple[float, float, float]], kind: Surrogate, low: float, high: float, dual: float
):
    ratio, advantage, logp = (torch.tensor(list(column), dtype=torch.float64) for column in zip(*tokens, strict=True))
    found, _ = surrogate(logp, ratio, advantage, kind=kind, low=low, high=high, dual=dual)
    expected = [plain_surrogate(math.exp(r), p, a, kind, low, high, dual) for r, a, p in tokens]
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------
# Ratios and corrections
# ---------------------------------------------------------------------------------------------------------------

OLD = [-1.0, -2.0, -0.5, -1.0, -3.0]
ENGINE = [-1.2, -1.5, -0.5, -3.0, -3.0]
ROW = [0, 0, 0, 1, 1]


def tensors(*columns: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in columns]


def plain_ratio(level: str, i: int) -> float:
    mine = [OLD[j] - ENGINE[j] for j in range(5) if ROW[j] == ROW[i]]
    return math.exp({"token": OLD[i] - ENGINE[i], "sequence": sum(mine), "geometric": sum(mine) / len(mine)}[level])


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_ratios_at_each_level_are_those_of_plain_python(level: RatioLevel):
    old, engine = tensors(OLD, ENGINE)
    found = log_ratios(old, engine, torch.tensor(ROW), level=level).exp()
    assert found.tolist() == pytest.approx([plain_ratio(level, i) for i in range(5)])


def test_a_sequences_ratio_has_a_gradient_at_each_of_its_tokens():
    logp = torch.tensor(OLD, requires_grad=True)
    log_ratios(logp, torch.tensor(ENGINE), torch.tensor(ROW), level="geometric")[0].backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize("kind", ["off", "truncate", "mask", "reject"])
def test_corrections_are_those_of_plain_python(kind: Correction, level: RatioLevel):
    old, engine = tensors(OLD, ENGINE)
    old.requires_grad_()
    weights, kept = correction(old, engine, torch.tensor(ROW), kind=kind, level=level, low=0.5, high=2.0)
    assert not weights.requires_grad
    rho = [plain_ratio(level, i) for i in range(5)]
    inside = [0.5 <= r <= 2.0 for r in rho]
    whole = [all(inside[j] for j in range(5) if ROW[j] == ROW[i]) for i in range(5)]
    expected = {
        "off": ([1.0] * 5, [True] * 5),
        "truncate": ([min(r, 2.0) for r in rho], [True] * 5),
        "mask": ([r if ok else 0.0 for r, ok in zip(rho, inside, strict=True)], inside),
        "reject": ([float(ok) for ok in whole], whole),
    }[kind]
    assert weights.tolist() == pytest.approx(expected[0]) and kept.tolist() == expected[1]


def test_nothing_trained_is_no_row():
    empty = torch.zeros(0)
    rows = torch.zeros(0, dtype=torch.int64)
    assert log_ratios(empty, empty, rows, level="sequence").tolist() == []
    assert correction(empty, empty, rows, kind="reject", level="geometric", low=0.5, high=2)[1].tolist() == []


# ---------------------------------------------------------------------------------------------------------------
# KL
# ---------------------------------------------------------------------------------------------------------------


def test_k1_and_k2_by_hand():
    logp, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0])
    assert k1(logp, reference).tolist() == [2.0, -1.0]
    assert k2(logp, reference).tolist() == [2.0, 0.5]


@pytest.mark.parametrize("estimator", [k2, k3])
def test_the_gradient_of_k2_is_that_of_the_divergence_and_k3s_of_the_reverse_one(estimator: Any):
    """Expected over samples of p: k2's gradient is KL(p, q)'s; k3's is KL(q, p)'s (it is used all the same, since near
    agreement the two have one second order)."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    p = torch.softmax(logits, 0)
    estimate = (p.detach() * estimator(p.log(), q.log())).sum()
    exact = (p * (p.log() - q.log())).sum() if estimator is k2 else (q * (q.log() - p.log())).sum()
    (found,), (expected,) = torch.autograd.grad(estimate, logits, retain_graph=True), torch.autograd.grad(exact, logits)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_an_adaptive_coefficient_moves_towards_its_target_and_by_no_more_than_its_rate():
    kl = KLCoefficient(0.1, target=0.02, rate=0.5)
    kl.update(0.02)
    assert kl.value == pytest.approx(0.1)
    kl.update(1.0)
    assert kl.value == pytest.approx(0.1 * 1.1)
    kl.update(0.0)
    assert kl.value == pytest.approx(0.1 * 1.1 * 0.9)
    fixed = KLCoefficient(0.1)
    fixed.update(9.0)
    assert fixed.value == 0.1


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
