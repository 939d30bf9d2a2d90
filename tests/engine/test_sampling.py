"""Sampling: the drawn distribution is the one whose log-probs are returned, and draws belong to requests."""

from __future__ import annotations

import numpy as np
import torch

from rockroll.engine.sampling import nucleus, sample, uniforms


def test_draws_are_a_function_of_seed_and_index() -> None:
    one = uniforms([7], [3])[0]
    assert uniforms([1, 7, -7, 2**70], [0, 3, 3, 3])[1] == one
    assert len({*uniforms([7] * 100, list(range(100))), *uniforms(list(range(100)), [3] * 100)}) == 199


def test_draws_are_uniform_for_neighbouring_seeds_and_indices() -> None:
    for draws in (uniforms(list(range(20_000)), [0] * 20_000), uniforms([5] * 20_000, list(range(20_000)))):
        assert draws.min() >= 0 and draws.max() < 1
        counts = np.histogram(draws, bins=20, range=(0, 1))[0]
        assert abs(counts - 1000).max() < 150  # 4.9 standard deviations


def test_samples_follow_the_logprobs_returned() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, -torch.inf]])
    for temperature in (0.5, 1.0, 2.0):
        n = 20_000
        ids, logprobs = sample(logits.expand(n, -1), [temperature] * n, [1.0] * n, uniforms([1] * n, list(range(n))))
        wanted = torch.log_softmax(logits[0] / temperature, -1)
        assert torch.allclose(torch.tensor(logprobs), wanted[ids], atol=1e-6)
        assert np.abs(np.bincount(ids, minlength=5) / n - wanted.exp().numpy()).max() < 0.015


def test_rows_of_one_call_keep_their_own_settings() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5]]).expand(4, 3)
    last = np.full(4, np.nextafter(1.0, 0))
    ids, logprobs = sample(logits, [0.0, 1.0, 0.0, 2.0], [0.5, 1.0, 1.0, 0.3], last)
    assert ids == [1, 2, 1, 1]
    assert torch.allclose(torch.tensor(logprobs[:3]), torch.log_softmax(logits[0], -1)[[1, 2, 1]])
    assert logprobs[3] == 0.0  # top_p 0.3 leaves one token


def test_the_largest_draw_never_takes_an_impossible_token() -> None:
    logits = torch.randn(64, 1000)
    logits[:, 500:] = -torch.inf
    draws = np.full(64, 1 - 2.0**-52)
    ids, logprobs = sample(logits, [1.0] * 64, [1.0] * 64, draws)
    assert max(ids) < 500 and np.isfinite(logprobs).all()


def test_nucleus_keeps_the_smallest_set_that_holds_top_p() -> None:
    logp = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log().expand(4, 4)
    kept = nucleus(logp, torch.tensor([0.49, 0.51, 0.05, 1.0])).exp()
    assert torch.allclose(kept[0], torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(kept[1], torch.tensor([0.625, 0, 0.375, 0]))
    assert torch.allclose(kept[2], torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(kept[3], logp[3].exp())
