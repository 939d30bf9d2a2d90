"""The whole path: sandbox, agent, model service, engine, trainer, weights back in the engine. All parts are real."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rockroll.engine.client import EngineClient
from rockroll.engine.config import EngineConfig
from rockroll.observe.running import running
from rockroll.placement.local import Processes
from rockroll.view.pages import create_app
from rockroll.view.runs import Runs
from tests.whole.conftest import Command, rows


@pytest.fixture(scope="module")
def finished(node_home: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of two steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "r"
    command = Command(node_home, tiny_model)
    done = command(*command.train(run_dir, "--set", "steps=2"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "held-out pass rate" in done.stdout and "rockroll eval" in done.stdout
    return run_dir


def test_metrics_tell_what_happened(finished: Path) -> None:
    zero, one, two = rows(finished)
    assert zero["step"] == 0 and 0 <= zero["eval/pass_rate"] <= 1 and "eval/pass_rate" in two
    for row in (one, two):
        assert row["episodes/ok"] + row["episodes/truncated"] == 12
        assert row["staleness/max"] == 0 and row["tokens/trained"] > 0
        assert 0 <= row["canary/max_abs_dlogp"] < 1e-3
        assert row["time/rollout_s"] > 0 and row["time/train_s"] > 0 and row["time/sync_s"] > 0
    assert (one["version"], two["version"]) == (1, 2)


def test_the_trainer_finds_the_engines_log_probs(finished: Path) -> None:
    """At step 1 the policy is the engine's: what the trainer recomputes must be what was sampled with."""
    one = rows(finished)[1]
    assert one["logp_diff/max_abs"] < 1e-3


async def test_trained_ids_are_the_engines(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The recorded log-probs are those of the recorded ids, and of no others, under the weights of version 0."""
    lines = (finished / "episodes" / "train-000001.jsonl").read_text().splitlines()
    samples = [sample for line in lines for sample in json.loads(line)["samples"]]
    assert sum(sum(sample["mask"]) for sample in samples) == rows(finished)[1]["tokens/trained"]
    async with Processes(tmp_path) as processes:
        config = EngineConfig(model=str(tiny_model), address=processes.address("e"))
        file = tmp_path / "engine.json"
        file.write_text(json.dumps({"model": config.model, "address": config.address}))
        await processes.start("engine", "rockroll.engine.server", "--config", str(file))
        engine = await EngineClient.connect(config.address)
        again = await processes.guard(asyncio.wait_for(_logprobs(engine, samples), 60))
        await engine.close()
    for sample, logprobs in zip(samples, again, strict=True):
        for i, sampled in enumerate(sample["mask"]):
            if sampled:
                assert sample["logprobs"][i] == pytest.approx(logprobs[i - 1], abs=1e-3)
                assert sample["versions"][i] == 0


async def _logprobs(engine: EngineClient, samples: list[dict[str, list[int]]]) -> list[list[float]]:
    return [await engine.logprobs(sample["ids"]) for sample in samples]


def test_a_run_can_be_looked_at(finished: Path) -> None:
    """Every trained token has the advantage that the trainer gave it; the page of an episode has the words."""
    lines = (finished / "episodes" / "train-000001.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        for sample, spans in zip(record["samples"], record["advantages"], strict=True):
            told = [i for start, end, _ in spans for i in range(start, end)]
            assert told == [i for i, sampled in enumerate(sample["mask"]) if sampled]
        assert len(record["sandbox"]) == 12 and record["node"] and record["began_at"] > 1.7e9
    assert list((finished / "running").iterdir()) == []
    with TestClient(create_app(Runs([finished]), token=None, hosts={"testserver"})) as pages:
        page = pages.get(f"/r/r/e/train-000001/{len(lines) - 1}").text
        assert "command 1" in page and "weights 0" in page and "advantage" in page
        assert (
            "reward/mean" in pages.get("/").text and "12 episodes" in pages.get("/r/r/episodes?step=2&split=train").text
        )


def test_a_run_continues_where_it_was(finished: Path, rockroll: Command) -> None:
    before = rows(finished)
    done = rockroll(*rockroll.train(finished, "--set", "steps=3", "--resume"))
    assert done.returncode == 0, done.stderr
    assert "continuing after step 2" in done.stdout
    after = rows(finished)
    assert after[:3] == before and [row["step"] for row in after] == [0, 1, 2, 3]
    assert after[3]["version"] == 3


def test_a_checkpoint_is_a_model_that_eval_and_transformers_load(finished: Path, rockroll: Command) -> None:
    from transformers import AutoModelForCausalLM

    model = finished / "checkpoints" / "step_2" / "model"
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 100_000
    done = rockroll("eval", "recipes/quickstart.yaml", "--model", str(model), "--episodes", "8", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["episodes"] == 8 and result["ci95"][0] <= result["pass_rate"] <= result["ci95"][1]


def test_a_run_that_samples_ahead_stays_within_its_bound(rockroll: Command, tmp_path: Path) -> None:
    """Groups of later steps are sampled while a step is trained and its weights are delivered."""
    ahead = ("--set", "rollout.max_staleness=1", "--set", "eval.episodes=0")
    done = rockroll(*rockroll.train(tmp_path / "r", "--set", "steps=3", *ahead))
    assert done.returncode == 0, done.stderr
    _, *steps = rows(tmp_path / "r")
    assert [row["version"] for row in steps] == [1, 2, 3]
    assert max(row["staleness/max"] for row in steps) == 1
    assert steps[0]["staleness/max"] == 0 and all(row["canary/max_abs_dlogp"] < 1e-3 for row in steps)


@pytest.mark.slow
def test_an_episode_at_work_is_found_by_rockroll_debug_until_it_ends(rockroll: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "r"
    slow = ("--set", "steps=1", "--set", "eval.episodes=0", "--set", "agent.command=sleep 60")
    process = rockroll.start(*rockroll.train(run_dir, *slow))
    try:
        deadline = time.monotonic() + 100
        while not (at_work := running(run_dir)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        episode, sandbox = at_work[0]["id"], at_work[0]["sandbox"]
        said = rockroll("debug", f"{run_dir}/{episode}")  # without a terminal it names the other way in
        assert said.returncode == 2 and f"rockroll sandbox exec {sandbox} --session debug" in said.stderr
        done = rockroll("sandbox", "exec", sandbox, "--session", "debug", "--", "cat /proc/[0-9]*/cmdline")
        assert "sleep" in done.stdout
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert running(run_dir) == []
    ended = rockroll("debug", f"{run_dir}/{episode}")
    assert ended.returncode == 1 and f"rockroll view {run_dir} --export {episode}" in ended.stderr


def test_nothing_is_left_of_a_run(finished: Path, gone_within) -> None:
    gone_within(10)
