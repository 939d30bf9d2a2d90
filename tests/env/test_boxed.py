"""An environment inside a sandbox plays as it does here; what becomes of it there is an EnvError, and stays there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import rockroll
from rockroll import Sandbox, SandboxConfig, rpc
from rockroll.env import box_player
from rockroll.env.api import Action
from rockroll.env.boxed import BoxedEnv
from rockroll.env.source import source
from rockroll.errors import EnvError, UsageError
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox.pool import Pool
from tests.rollout.conftest import write_model_folder
from tests.rollout.engines import ScriptedEngine

GAMES = "tests.env.games"


@pytest.fixture
async def box(node: rpc.Client) -> AsyncIterator[Sandbox]:
    async with Sandbox(SandboxConfig(memory="128m", pids=64)) as sandbox:
        yield sandbox


async def test_it_plays_the_same_episode_as_here_and_leaves_nothing(box: Sandbox) -> None:
    here = rockroll.make("rockroll:sokoban", level="tiny")
    there = rockroll.make_async("rockroll:sokoban", sandbox=box, level="tiny")
    with pytest.raises(UsageError, match="one sandbox plays one environment"):
        rockroll.make_async("rockroll:sokoban", 2, sandbox=box)
    for seed in (3, 4):
        assert await there.reset(seed) == here.reset(seed)
        for said in ("up", "nothing 🙂 \ud83d", "left"):
            assert await there.step(said) == here.step(said)
    await there.aclose()
    tools = BoxedEnv(box, source("rockroll:arithmetic"))
    _, info = await tools.reset(1)
    assert [tool["name"] for tool in info["tools"]] == ["add", "subtract", "multiply"]
    assert (await tools.step(Action.of("", ("add", '{"a": 2, "b": 3}'))))[0] == "5"
    await tools.aclose()
    assert [process.pid for process in await box.processes()] == [1]


async def test_what_goes_wrong_there_is_told_and_the_box_can_be_played_in_again(box: Sandbox) -> None:
    cases = (
        ("Spins", "step did not come back from its sandbox within 1 s"),
        ("Dies", r"its process ended in step \(exit code 139: my last words"),
        ("Parses", r"Parses\.step raised ValueError: invalid literal"),
        ("Absent", r"tests\.env\.games has no class 'Absent'"),
        ("Work", "is for an Env, with reset and step"),
    )
    for name, says in cases:
        env = BoxedEnv(box, source(f"{GAMES}:{name}"), limit=1.0)
        with pytest.raises(EnvError, match=says):
            await env.reset(0)
            await env.step("x")
        await env.aclose()
    for name in ("OldGuess", "AsyncGuess", "Pid"):
        env = BoxedEnv(box, source(f"{GAMES}:{name}"))
        await env.reset(0)
        assert (await env.step("x"))[:2] == ("wrong", 0.0)
        await env.aclose()
    assert [process.pid for process in await box.processes()] == [1]


async def test_what_only_the_image_could_have_is_told_and_need_not_be_here(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "words.py").write_text("WORD = 'ready'\n")
    (tmp_path / "mine.py").write_text(
        "import words\nclass Ready:\n"
        "    def reset(self, seed=None):\n        return words.WORD, {}\n"
        "    def step(self, action):\n        return b'', 0.0, True, {}\n"
    )
    (tmp_path / "needs.py").write_text("import nowhere_to_be_found\nclass Env: pass\n")
    env = BoxedEnv(box, source("mine:Ready"))
    assert await env.reset(0) == ("ready", {})
    with pytest.raises(EnvError, match="an observation is text, or a list of token ids; got bytes"):
        await env.step("x")
    await env.aclose()
    env = BoxedEnv(box, source("needs:Env"))
    with pytest.raises(EnvError, match="no Python module 'nowhere_to_be_found' in the sandbox's image"):
        await env.reset(0)
    await env.aclose()
    (tmp_path / "broken.py").write_text("class Env(:\n")
    with pytest.raises(UsageError, match=r"broken\.py is not Python"):
        source("broken:Env")


async def test_a_box_that_is_lost_is_an_env_error(node: rpc.Client) -> None:
    async with Sandbox(SandboxConfig(memory="128m", pids=64)) as box:
        env = BoxedEnv(box, source(f"{GAMES}:Hangs"))
        await env.reset(0)
        step = asyncio.ensure_future(env.step("1"))
        await asyncio.sleep(0)
        await box.stop()
        with pytest.raises(EnvError, match="Hangs: "):
            await step
        await env.aclose()


def rollout(tmp_path: Path, env: str, pool: Pool | None, **more: Any) -> Rollout:
    tokenizer = ChatTokenizer(write_model_folder(tmp_path / "model"))
    engine = ScriptedEngine(tokenizer, lambda prompt, request: "1", 4096)
    task = TaskConfig(env=env, max_turns=5, where="sandbox", **more)
    return Rollout(RolloutConfig(concurrency=2), engine, pool, task, None, tokenizer)


async def test_one_word_in_a_task_plays_its_episodes_there(node: rpc.Client, tmp_path: Path) -> None:
    async with Pool(SandboxConfig(memory="128m", pids=64), 2, session=None) as pool:
        async with rollout(tmp_path, f"{GAMES}:Guess", pool, options={"highest": 1}) as run:
            (group,) = await run.batch(0, groups=1, episodes=3)
        told = {(episode.outcome, episode.reward) for episode in group.episodes}
        assert told <= {("ok", 1.0), ("truncated", 0.0)} and all(episode.sandbox for episode in group.episodes)


def test_it_takes_a_pool_and_is_for_an_env(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a Rollout of it needs a pool"):
        rollout(tmp_path, f"{GAMES}:Guess", None)
    with pytest.raises(UsageError, match="leave out where: sandbox"):
        rollout(tmp_path, "rockroll:shell", None)


@pytest.mark.slow
async def test_a_task_that_always_breaks_there_stops_the_run_and_says_why(node: rpc.Client, tmp_path: Path) -> None:
    box = SandboxConfig(memory="128m", pids=64)
    async with Pool(box, 2, session=None) as pool, rollout(tmp_path, f"{GAMES}:Dies", pool) as run:
        with pytest.raises(EnvError, match="its process ended in step"):
            await run.batch(0, groups=1, episodes=2)


async def test_after_a_hang_no_late_answer_is_taken_for_another_call_s(box: Sandbox) -> None:
    env = BoxedEnv(box, source(f"{GAMES}:Hangs"), limit=1.0)
    await env.reset(0)
    with pytest.raises(EnvError, match="did not come back from its sandbox within 1 s"):
        await env.step("1")
    await asyncio.sleep(2.5)  # it has answered by now
    with pytest.raises(EnvError, match="a call before this reset did not come back; aclose comes first"):
        await env.reset(7)
    await env.aclose()
    assert (await env.reset(7))[0].startswith("7: guess")
    await env.aclose()


def test_a_module_that_breaks_as_it_is_imported_is_not_said_to_lack_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = "import os\nos.what_an_older_version_had\nclass Env: pass\n"
    asked = {"name": "x", "module": "breaks_at_import", "cls": "Env", "given": [], "options": {}, "split": "train"}
    with pytest.raises(box_player.Refused, match="importing breaks_at_import failed: AttributeError: module 'os'"):
        box_player.make({**asked, "files": {"breaks_at_import.py": text}})
