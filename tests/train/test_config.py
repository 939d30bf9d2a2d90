"""A wrong setting is refused with the value got and what would be right."""

import math

import pytest

from rockroll.train.config import TrainConfig


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lr": -1}, "lr must be at least 0; got -1"),
        ({"ranks": 0}, "ranks must be at least 1; got 0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
        ({"clip_low": 1.2}, r"clip_low must be in \(0, 1\]"),
        ({"clip_high": 0}, "clip_high must be over 0; got 0"),
        ({"correction_high": 0.5}, "correction_high must be 1 or more"),
        ({"correction_low": 1.5}, "correction_low must be at most 1"),
        ({"dual_clip": 0.5}, "dual_clip must be over 1"),
        ({"gamma": 1.1}, r"gamma must be in \[0, 1\]"),
        ({"ratio": "direct", "correction": "truncate"}, "correction must be off; got truncate"),
        ({"ratio_level": "sequence"}, "aggregation must be sequence_mean_of_means; got token_mean"),
        ({"algorithm": "dr_grpo"}, "constant_length needs aggregation_length"),
        ({"kl": 0.1, "kl_estimator": "k1"}, "kl_estimator k1 has a gradient of zero mean"),
        ({"kl_target": 0.1}, "kl_target adapts kl, which must start over 0"),
        ({"lr_floor": 2}, r"lr_floor is a share of lr, in \[0, 1\]; got 2"),
        ({"dtype": "bfloat16"}, "needs zero_stage 1 or more"),
        ({"ranks": 2, "address": "ipc:///x"}, r"address needs \{rank\} in it for 2 ranks"),
        ({"objective": "sft", "kl": 0.1}, "kl is a part of objective policy; leave it out for sft; got 0.1"),
        ({"objective": "distill"}, "distill needs teacher"),
        ({"teacher": "tiny"}, "teacher is for objective distill; got it with objective policy"),
        ({"objective": "dpo", "dpo_beta": 0}, "dpo_beta must be over 0"),
    ],
)
def test_refused(fields: dict, says: str):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**fields)


def test_each_rank_has_its_own_address():
    config = TrainConfig(ranks=2, address="ipc:///run/trainer-{rank}")
    assert [config.rank_address(r) for r in (0, 1)] == ["ipc:///run/trainer-0", "ipc:///run/trainer-1"]


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1]),
    ],
)
def test_the_learning_rate_climbs_and_then_follows_its_schedule(schedule: str, at: list[float]):
    config = TrainConfig(lr=2.0, warmup_steps=2, schedule=schedule, lr_floor=0.1, schedule_updates=10)  # pyright: ignore[reportArgumentType]
    assert [config.learning_rate(n) / 2 for n in (0, 1, 2, 4, 6, 99)] == pytest.approx(at)
