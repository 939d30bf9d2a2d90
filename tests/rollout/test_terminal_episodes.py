"""Episodes of terminal tasks: a box of its own for each, the task's limits, its own tests for the reward."""

from __future__ import annotations

from rockroll import home, rpc
from rockroll.agent.config import AgentConfig
from rockroll.engine.api import GenerateRequest
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.runner import Rollout
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox.client import list_sandboxes
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.on_demand import OnDemand

from .engines import ScriptedEngine


async def test_a_policy_that_knows_how_is_paid_and_one_that_idles_is_ended(
    tokenizer: ChatTokenizer, node: rpc.Client
) -> None:
    def policy(prompt: str, request: GenerateRequest) -> str:
        if prompt.count("<|im_start|>user") > 1:
            return "done"
        if "lost" in prompt or "git reset" in prompt:
            return "git reset --hard $(git reflog --format=%H | sed -n 2p)"
        return "sleep 1000"

    # top-callers' own limit is 120 s: the factor leaves 1.2 of them.
    options = {"only": ["lost-commit", "top-callers"], "time": 0.01}
    task = TaskConfig(env="rockroll:terminal", options=options, max_turns=4, failure_reward=-0.5)
    agent = AgentConfig(
        command="python3 -I -S /opt/shell_agent.py", files={"/opt/shell_agent.py": "rockroll:shell_agent.py"}
    )
    boxes = OnDemand(SandboxConfig(pids=64))
    address = f"ipc://{home.runtime_dir() / 'relay-test'}"
    engine = ScriptedEngine(tokenizer, policy)
    config = RolloutConfig(concurrency=2)
    async with Rollout(config, engine, boxes, task, agent, tokenizer, address=address) as run:
        solved, idle = await run.evaluate(range(2), temperature=0.0)
    assert (solved.outcome, solved.reward, solved.detail) == ("ok", 1.0, "")
    assert (idle.outcome, idle.reward) == ("truncated", -0.5) and "time limit of 1.2 s" in idle.detail
    assert await list_sandboxes() == [], "a box of an episode's own goes with it"
