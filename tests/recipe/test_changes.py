"""A continued run may change how it works, not what it is."""

from dataclasses import replace

import pytest

from rockroll.controller.config import RunConfig
from rockroll.errors import UsageError
from rockroll.recipe.changes import changes, check
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.train.config import TrainConfig
from rockroll.train.lora_config import LoraConfig

BEFORE = RunConfig(name="a", steps=10, task=TaskConfig(env="rockroll:frozen_lake"))


def test_an_unchanged_recipe_has_no_changes():
    assert changes(BEFORE, BEFORE) == []


def test_ranks_stage_dtype_steps_and_the_learning_rate_may_change_and_are_told():
    after = replace(BEFORE, steps=20, train=TrainConfig(ranks=2, zero_stage=3, dtype="bfloat16", lr=1e-5))
    found = changes(BEFORE, after)
    check(found, done=10)
    assert [str(change) for change in found] == [
        "steps: 10 → 20",
        "train.lr: 1e-06 → 1e-05",
        "train.zero_stage: 0 → 3",
        "train.ranks: 1 → 2",
        "train.dtype: float32 → bfloat16",
    ]


def test_so_may_how_fast_it_samples():
    check(changes(BEFORE, replace(BEFORE, rollout=RolloutConfig(concurrency=4))), done=5)
    kept = replace(BEFORE, rollout=RolloutConfig(failure_rate=1.0, stall_timeout=600))
    check(changes(BEFORE, kept), done=5)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (replace(BEFORE, seed=3), "--resume: seed was 0 and is 3 now: every task and every draw comes from it; set it"),
        (replace(BEFORE, model="/x"), "model was tiny and is /x now: the checkpoint's weights are of the other model"),
        (
            replace(BEFORE, task=TaskConfig(env="rockroll:frozen_lake", options={"size": 5})),
            "task.options.size was left out and is 5 now: the run's place among its tasks",
        ),
        (replace(BEFORE, rollout=RolloutConfig(groups=3)), "rollout.groups was 16 and is 3 now: the run's place"),
        (
            replace(BEFORE, train=TrainConfig(lora=LoraConfig())),
            "train.lora.rank was left out and is 16 now: the checkpoint's adapter has the other form",
        ),
        (replace(BEFORE, steps=4), "steps is 4 now, and the run has done 5; set more"),
    ],
)
def test_what_the_run_is_may_not_change(after: RunConfig, says: str):
    with pytest.raises(UsageError, match=says):
        check(changes(BEFORE, after), done=5)


def test_an_adapters_dropout_may_change():
    one, other = (replace(BEFORE, train=TrainConfig(lora=LoraConfig(dropout=d))) for d in (0.0, 0.1))
    check(changes(one, other), done=5)
