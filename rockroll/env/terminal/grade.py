"""What a terminal task's tests say of a box.

In: a TerminalTask and the box in which the agent worked, all its processes dead. Out: the reward, and what the tests
printed. Leaves reading the folder to layout.py and building the image to tasks.py.

    the agent's box ── fork ──► a copy that no process of the agent was ever in ── tests put in ──► run ──► reward

The tests enter the copy alone: the agent's box never holds them, and what was planted under their paths is removed.
What the agent made of the box itself, its programs included, is in the copy as it left them: that is what is graded.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rockroll.env.terminal.layout import TerminalTask
from rockroll.errors import FileError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.wire import Observation

VERIFIER, AGENT_LOGS = "/logs/verifier", "/logs/agent"
"""Folders that tests and agents of these tasks may expect; what is in the first is the tests' own."""
REWARD_TXT, REWARD_JSON = f"{VERIFIER}/reward.txt", f"{VERIFIER}/reward.json"
SAID = 4000
"""Characters of what tests or a solution printed last."""


@dataclass(frozen=True)
class Verdict:
    """What came of one grading. reward: None where the tests gave none, and `why` says how that showed."""

    reward: float | None
    said: str
    """The end of what the tests printed."""
    why: str = ""


async def graded(task: TerminalTask, sandbox: Sandbox, cwd: str) -> Verdict:
    """The tests' verdict on a copy of this box. Raises what the sandbox raises."""
    async with await sandbox.fork() as copy:
        return await tested(task, copy, cwd)


async def tested(task: TerminalTask, copy: Sandbox, cwd: str) -> Verdict:
    """The tests' verdict on this box, into which they are put."""
    cleared = await copy.execute(["rm", "-rf", "--", VERIFIER, "/tests"])
    if cleared.exit_code != 0:
        return Verdict(None, cleared.output[-SAID:], "the places of the tests cannot be cleared")
    try:
        for source, target in task.tests:
            await copy.upload(source, target)
        await copy.mkdir(VERIFIER, mode=0o777)
    except FileError as error:
        return Verdict(None, "", f"the tests cannot be put into the box: {error}")
    run = await script(copy, task.test, cwd=cwd, timeout=task.test_seconds, env={**task.env, **task.test_env})
    said = run.output.strip()[-SAID:]
    if run.outcome == "timeout":
        return Verdict(None, said, f"the tests were not done within {task.test_seconds:g} s")
    if not task.rewards:
        return Verdict(float(run.exit_code == 0), said)
    reward, why = await _reward(copy)
    return Verdict(reward, said, why and f"{why} (the tests ended with exit code {run.exit_code})")


async def script(sandbox: Sandbox, path: str, *, cwd: str, timeout: float, env: dict[str, str]) -> Observation:
    """Runs a script of a task in a folder, as Harbor does: made executable, by its own first line."""
    line = 'chmod +x "$1"; mkdir -p "$2" && cd "$2" && exec bash -c "$1"'
    return await sandbox.execute(["bash", "-c", line, "bash", path, cwd], timeout=timeout, env=env)


async def _reward(copy: Sandbox) -> tuple[float | None, str]:
    for path, parse in ((REWARD_JSON, _of_json), (REWARD_TXT, _of_text)):
        try:
            data = await copy.read_file(path, limit=65536)
        except FileError:
            continue
        reward = parse(data.decode(errors="replace"))
        if reward is None or not math.isfinite(reward):
            return None, f"{path} holds no reward: {data[:80]!r}"
        return reward, ""
    return None, f"the tests wrote neither {REWARD_TXT} nor {REWARD_JSON}"


def _of_text(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _of_json(text: str) -> float | None:
    """The member `reward`, or the only one there is."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    values = said if isinstance(said, dict) else {"reward": said}
    value = values.get("reward", next(iter(values.values())) if len(values) == 1 else None)
    return float(value) if isinstance(value, int | float) else None
