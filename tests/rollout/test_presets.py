"""Agents by name: `agent: {preset: …}` in a recipe, from its packages to an episode in a box without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rockroll import home, rpc
from rockroll.agent.config import AgentConfig, BudgetConfig
from rockroll.agent.install import folder, image_name, install
from rockroll.agent.presets import PRESETS, preset
from rockroll.cli.main import run
from rockroll.controller.boxes import boxes, installed
from rockroll.controller.config import RunConfig
from rockroll.engine.api import GenerateRequest
from rockroll.errors import UsageError
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Episode
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.on_demand import OnDemand

from .engines import Policy, ScriptedEngine
from .families import chat_tokenizer as of_family

ROOT = Path(__file__).parents[2]
SOLVE = "git reset --hard $(git reflog --format=%H | sed -n 2p)"


# ---- names, versions, boxes ----------------------------------------------------------------------------------------


def test_their_versions_are_the_ones_that_the_real_clients_are_tested_at() -> None:
    tested = set(re.findall(r"[@\w./-]+(?:==|@)\d[\d.]+", (ROOT / "scripts" / "agents").read_text()))
    pinned = {package for each in PRESETS.values() for package in (*each.python, *each.npm)}
    assert pinned and pinned <= tested


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"preset": "codes"}, "agent preset is one of reference, .*; got 'codes'; did you mean codex"),
        ({"preset": "codex", "command": "x"}, "a preset or a command of its own; got codex and 'x'"),
        ({}, "got an empty one"),
    ],
)
def test_wrong_ones_say_the_rule(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AgentConfig(**wrong)


def config(agent: AgentConfig, env: str = "rockroll:shell", **sandbox: str) -> RunConfig:
    return RunConfig(name="n", steps=1, task=TaskConfig(env=env), agent=agent, sandbox=SandboxConfig(**sandbox))


def test_its_box_has_it_in_the_image_or_where_that_is_another_s_as_a_folder() -> None:
    codex = AgentConfig(preset="codex")
    (box,) = boxes(config(codex)).values()
    assert (box.image, box.mounts) == (image_name(preset("codex")), ())
    mount = f"{folder(preset('codex'))}:/opt/agents/codex:ro"
    for other in (config(codex, image="mine"), config(codex, env="rockroll:terminal")):
        (box,) = boxes(other).values()
        assert (box.image, box.mounts) == (other.sandbox.image, (mount,))
    (box,) = boxes(config(AgentConfig(preset="reference"))).values()
    assert (box.image, box.mounts) == (None, ())
    assert installed(config(codex)) == [(preset("codex"), True)]
    assert installed(config(codex, image="mine")) == [(preset("codex"), False)]
    with pytest.raises(UsageError, match="qwen-code needs boxes of 1g memory at least; got sandbox memory: 512m"):
        boxes(config(AgentConfig(preset="qwen-code")))


def test_the_command_line_refuses_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "build", "--agent", "copilot"]) == 2
    assert "agent preset is one of reference" in capsys.readouterr().err
    assert run(["image", "build", "--agent", "reference"]) == 2
    assert "needs no installation" in capsys.readouterr().err


# ---- episodes ------------------------------------------------------------------------------------------------------


async def episode(tokenizer: ChatTokenizer, policy: Policy, agent: AgentConfig, **sandbox: str) -> Episode:
    """lost-commit, whose last commit SOLVE brings back."""
    task = TaskConfig(env="rockroll:terminal", options={"only": ["lost-commit"], "time": 4}, max_turns=8)
    (box,) = boxes(config(agent, task.env, **sandbox)).values()
    address = f"ipc://{home.runtime_dir() / 'relay-test'}"
    rollout = RolloutConfig(concurrency=1, max_tokens=512, episode_timeout=800, stall_timeout=700)
    engine = ScriptedEngine(tokenizer, policy, context_length=200_000)
    async with Rollout(rollout, engine, OnDemand(box), task, agent, tokenizer, address=address) as run:
        (one,) = await run.evaluate([0], temperature=0.0)
    return one


async def test_the_reference_agent_does_a_terminal_task_and_its_log_is_kept(
    tokenizer: ChatTokenizer, node: rpc.Client
) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        turn = prompt.count("<|im_start|>assistant")
        said = ["I look.", f"```bash\n{SOLVE}; echo $PWD > /tmp/my.log\n```", "It is DONE."][turn - 1]
        return said

    agent = AgentConfig(preset="reference", logs=("/tmp/*.log", "/tmp/no such"))
    one = await episode(tokenizer, policy, agent)
    assert (one.outcome, one.reward, one.turns) == ("ok", 1.0, 3)
    assert one.log.startswith("I look.") and one.log.endswith("DONE.\n== /tmp/my.log\n/app/notes")


async def test_its_budget_of_tokens_ends_it(tokenizer: ChatTokenizer, node: rpc.Client) -> None:
    agent = AgentConfig(preset="reference", budget=BudgetConfig(completion_tokens=40))
    one = await episode(tokenizer, lambda *_: "```bash\nls\n```", agent)
    assert (one.outcome, one.reward) == ("truncated", 0.0) and "40" in one.detail


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, each in PRESETS.items() if each.installs])
async def test_a_real_agent_does_a_terminal_task_in_a_box_without_a_network(node: rpc.Client, name: str) -> None:
    tokenizer = of_family("qwen2.5")
    shells = {"exec_command": "cmd", "Bash": "command", "run_shell_command": "command", "bash": "command"}
    end = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"

    def policy(prompt: str, request: GenerateRequest) -> str:
        tool = next((each for each in shells if f'"name": "{each}"' in prompt), None)
        done = prompt.count("<tool_response>")
        if tool is None or done > (name == "mini-swe-agent"):
            return "All done."
        said = {"description": "to see", shells[tool]: end if done else SOLVE}
        return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': said})}\n</tool_call>"

    await install(preset(name))
    one = await episode(tokenizer, policy, AgentConfig(preset=name), memory="1g")
    assert (one.outcome, one.reward) == ("ok", 1.0), f"{one.detail}\n{one.log}"
    assert one.log.count("== ") >= 1 and "reset --hard" in one.log, "its own record stands in the episode's"
