"""Demonstrations: an environment's own solver plays training's situations, and an sft data set reads what it did."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rockroll.cli.main import app
from rockroll.data.config import DataConfig
from rockroll.data.demonstrations import Demonstrations
from rockroll.data.source import DataSet, Deck
from rockroll.env.frozen_lake import FrozenLake
from rockroll.env.sokoban import Sokoban
from rockroll.errors import UsageError
from rockroll.rollout.tokenizer import ChatTokenizer
from tests.rollout.conftest import write_model_folder

ROOMS: dict[str, Any] = {"env": "rockroll:sokoban", "options": {"level": "easy", "render": "list"}}
HERE = "tests.data.test_demonstrations"


class Echo:
    """Passes where the word of its seed is repeated; its solver knows it, and chance does not."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.word = f"w{seed}"
        return self.word, {"system": "Repeat."}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(action == self.word), True, False, {}

    def expert_action(self) -> str:
        return self.word

    def sample_random_action(self) -> str:
        return f"no{random.random()}"


class NoSolver(Echo):
    expert_action = None  # type: ignore[assignment]


class NeverRight(Echo):
    def expert_action(self) -> str:
        return "?"


class Waits(Echo):
    async def step(self, action: str) -> Any:  # type: ignore[override]
        import asyncio

        await asyncio.sleep(0)
        return super().step(action)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["env", "demos", *words])


# ------------------------------------------------------------------------------------------------- what is made


def test_each_is_a_conversation_whose_answers_pass_in_that_situation() -> None:
    for example in (Demonstrations(**ROOMS, size=20, noise=0.2)[n] for n in range(20)):
        said = [message["content"] for message in example["messages"] if message["role"] == "assistant"]
        assert [message["role"] for message in example["messages"]] == ["user", "assistant"] * len(said)
        shown = [message["content"] for message in example["messages"] if message["role"] == "user"]
        assert "Push each box" in shown[0] and all("Push" not in later for later in shown[1:])
        assert set(said) <= {"up", "down", "left", "right"}


def test_the_system_message_of_the_environment_comes_first() -> None:
    example = Demonstrations(f"{HERE}:Echo", size=1)[0]
    assert [message["role"] for message in example["messages"]] == ["system", "user", "assistant"]


def test_the_same_number_is_the_same_conversation_whatever_else_is_drawn() -> None:
    once, again = Demonstrations(**ROOMS, noise=0.3), Demonstrations(**ROOMS, noise=0.3)
    random.seed(5)
    state = random.getstate()
    first = [once[n] for n in range(8)]
    assert random.getstate() == state
    assert [again[n] for n in reversed(range(8))] == first[::-1]
    assert Demonstrations(**ROOMS, noise=0.3, seed=1)[0] != first[0]


def test_they_are_of_trainings_rooms_alone() -> None:
    """By the environment's own split: a room of `eval` never begins one."""
    ours = {Demonstrations(**ROOMS)[n]["messages"][0]["content"] for n in range(100)}
    game = Sokoban(**ROOMS["options"], split="eval")
    assert not ours & {game.reset(seed)[0] for seed in range(300)}
    with pytest.raises(UsageError, match="of training's situations alone"):
        Demonstrations("rockroll:sokoban", {"split": "eval"})


def test_noise_is_the_share_of_random_answers_and_what_it_spoils_is_left_out() -> None:
    exact = Demonstrations("rockroll:frozen_lake", size=60)
    weak = Demonstrations("rockroll:frozen_lake", size=60, noise=0.4)
    turns = [sum(len(d[n]["messages"]) // 2 for n in range(60)) for d in (exact, weak)]
    assert exact.tried == 60 < weak.tried
    assert turns[0] < turns[1]


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"env": f"{HERE}:NoSolver"}, "NoSolver has no expert_action()"),
        ({"env": "rockroll:arithmetic"}, "calls a tool, and its own policies are played in words"),
        (
            {"env": f"{HERE}:NeverRight"},
            "of 100 episodes of .*NeverRight played by its solver with noise 0 none passed",
        ),
        ({"env": "rockroll:shell"}, "is worked on by an agent in a sandbox"),
        ({"env": "rockroll:frozen_lak"}, "did you mean rockroll:frozen_lake"),
        ({"env": f"{HERE}:Waits"}, "write a file with rockroll env demos"),
    ],
)
def test_a_task_that_cannot_be_demonstrated_says_why(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Demonstrations(**given)[0]


def test_options_out_of_range_say_what_the_range_is() -> None:
    with pytest.raises(ValueError, match="from 0 to below 1; got 1"):
        Demonstrations(**ROOMS, noise=1)
    with pytest.raises(ValueError, match="at least one example; got size 0"):
        Demonstrations(**ROOMS, size=0)


# ------------------------------------------------------------------------------------------------- a data set, a file


def test_an_sft_run_reads_them_by_name_and_as_a_file_alike(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(write_model_folder(tmp_path))
    options = {**ROOMS, "size": 40, "noise": 0.1}
    file = tmp_path / "demos.jsonl"
    done = run("rockroll:sokoban", "--count", "40", "--noise", "0.1", "--out", str(file),
               "--option", "level=easy", "--option", "render=list")  # fmt: skip
    assert done.exit_code == 0 and done.stdout.startswith("40 demonstrations in "), done.output
    named = DataConfig(path="rockroll:demonstrations", options=options, batch=8)
    written = DataConfig(path=str(file), batch=8)
    first, second = (Deck(DataSet(c, "sft", seed=3), tokenizer, context=4096).deal(1) for c in (named, written))
    assert first.batch == second.batch and len(first.batch.samples) == 8
    sample = first.batch.samples[0]
    answers = tokenizer.plain([i for i, m in zip(sample.ids, sample.mask, strict=True) if m])
    assert set(answers.replace("<|im_end|>", " ").split()) <= {"up", "down", "left", "right"}


def test_an_environment_that_waits_can_be_written_to_a_file(tmp_path: Path) -> None:
    done = run(f"{HERE}:Waits", "--count", "3", "--out", str(tmp_path / "d.jsonl"), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"file": str(tmp_path / "d.jsonl"), "demonstrations": 3, "left_out": 0}
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 3


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    done = run(f"{HERE}:NeverRight", "--out", str(tmp_path / "d.jsonl"))
    assert isinstance(done.exception, UsageError) and not list(tmp_path.iterdir())


def test_wrong_use_of_the_command_says_the_rule(tmp_path: Path) -> None:
    for words, says in (
        (["rockroll:sokoban", "--out", str(tmp_path / "no" / "d.jsonl")], "a folder that is there"),
        (["rockroll:sokoban", "--out", str(tmp_path / "d"), "--noise", "1.5"], "noise is the share of random answers"),
        (["rockroll:sokoban", "--out", str(tmp_path / "d"), "--option", "level"], "--option is KEY=VALUE"),
    ):
        assert says in str(run(*words).exception)


# ------------------------------------------------------------------------------------------------- a baseline


def test_eval_says_what_chance_and_the_solver_score_on_the_held_out_tasks(tmp_path: Path) -> None:
    recipe = tmp_path / "lake.yaml"
    recipe.write_text(
        "name: lake\nsteps: 1\nmodel: not/there\neval: {episodes: 64}\n"
        "task: {env: rockroll:frozen_lake, max_turns: 16}\n"
    )

    def scores(policy: str, *more: str) -> Any:
        done = CliRunner().invoke(app, ["eval", str(recipe), "--policy", policy, "--json", *more])
        return json.loads(done.stdout) if done.exit_code == 0 else str(done.exception)

    chance, solver = scores("random"), scores("expert")
    assert solver["pass_rate"] == 1.0 and solver["episodes"] == 64
    assert chance["pass_rate"] < 0.2 and chance["ci95"][0] <= chance["pass_rate"] <= chance["ci95"][1]
    assert scores("random") == chance
    assert "--policy is expert or random; got 'best'" in scores("best")
    assert "leave out --model" in scores("random", "--model", "x")


def test_a_policy_of_an_agents_task_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "shell.yaml"
    recipe.write_text(
        "name: a\nsteps: 1\ntask: {env: rockroll:shell}\nagent: {command: python3 /a.py}\neval: {episodes: 2}\n"
    )
    done = CliRunner().invoke(app, ["eval", str(recipe), "--policy", "random"])
    assert "is worked on by an agent in a sandbox" in str(done.exception)


def test_the_moves_have_the_names_that_the_lake_was_given() -> None:
    lake = FrozenLake(moves=["cat", "rm", "echo", "cp"])
    lake.reset(3)
    assert {lake.expert_action(), lake.sample_random_action()} <= {"cat", "rm", "echo", "cp"}
