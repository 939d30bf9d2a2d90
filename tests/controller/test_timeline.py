"""The time line of a whole run: its phases without a gap, every episode, every delivery of weights."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rockroll.observe.trace import NAME
from rockroll.rollout.tokenizer import ChatTokenizer
from tests.controller.toy import Run, config, trained
from tests.rollout.conftest import write_model_folder

LOOP, TRAIN, EVAL = 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer(write_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer: ChatTokenizer) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run = Run(config(max_staleness=1, steps=5), path, tokenizer)
    run.told = True
    asyncio.run(run.go())
    return path


def events(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    return [
        event
        for event in json.loads((path / NAME).read_text())
        if all(event.get(key) == value for key, value in wanted.items())
    ]


def test_phases_follow_one_another_without_a_gap(made: Path) -> None:
    spans = events(made, ph="X", pid=LOOP)
    names = [span["name"] for span in spans]
    assert {"starting", "rollout", "train", "sync", "evaluation", "recording", "saving", "ending"} <= set(names)
    assert names.count("train") == 5 and [s["args"]["step"] for s in spans if s["name"] == "train"] == [1, 2, 3, 4, 5]
    assert all(abs(one["ts"] + one["dur"] - next["ts"]) <= 1 for one, next in pairwise(spans))


def test_every_trained_episode_is_a_span_that_overlaps_no_other_on_its_lane(made: Path) -> None:
    spans = events(made, ph="X", pid=TRAIN)
    for lane in {span["tid"] for span in spans}:
        on = sorted((span for span in spans if span["tid"] == lane), key=lambda span: span["ts"])
        assert all(one["ts"] + one["dur"] <= next["ts"] for one, next in pairwise(on))
    done = sum(span["args"]["outcome"] in ("ok", "truncated") for span in spans)
    assert done >= len(trained(made)) == 20
    assert all(span["name"].startswith("group ") and span["args"]["turns"] > 0 for span in spans)
    assert len(events(made, ph="X", pid=EVAL)) == 9, "3 held-out tasks before, at step 4, after"


def test_each_delivery_of_weights_is_an_instant(made: Path) -> None:
    assert [event["args"]["version"] for event in events(made, ph="i", pid=LOOP)] == [0, 1, 2, 3, 4, 5]


async def test_a_resumed_run_goes_on_in_the_same_time_line(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    for steps in (2, 4):
        await Run(config(steps=steps), tmp_path / "run", tokenizer).go()
    done = [s["args"]["step"] for s in events(tmp_path / "run", ph="X", name="train")]
    assert done == [1, 2, 3, 4]
