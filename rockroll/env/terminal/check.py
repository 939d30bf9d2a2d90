"""Whether terminal tasks can be trusted: the reference solution earns 1, doing nothing earns 0.

In: TerminalTasks. Out: a Finding for each task and each of the two, as it comes, with what to do where it is wrong.
Leaves showing them to the command line, and the grading to grade.py, which training uses too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from rockroll.env.terminal.grade import graded
from rockroll.env.terminal.layout import TerminalTask
from rockroll.env.terminal.tasks import TerminalTasks, solve
from rockroll.errors import RockrollError
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.on_demand import OnDemand

LINES = 12
"""Of what tests or a solution said last, in a finding."""


class Checked(msgspec.Struct, frozen=True):
    """What one of the two earned. reward: None where there was no grading."""

    task: str
    agent: str
    """`oracle`, which runs the reference solution, or `nop`, which does nothing."""
    ok: bool
    reward: float | None
    detail: str = ""
    cure: str = ""
    said: str = ""
    """The end of what was printed, where it is not ok."""
    seconds: float = 0.0


async def check(
    tasks: TerminalTasks, config: SandboxConfig | None = None, *, at_once: int = 2
) -> AsyncIterator[Checked]:
    """Every task of the folder with either agent, in the order in which they are done. config: the recipe's sandbox.

    Raises what `prepare` and the start of a box raise.
    """
    await tasks.prepare()
    boxes, slots = OnDemand(config), asyncio.Semaphore(at_once)

    async def one(task: TerminalTask, agent: str) -> Checked:
        async with slots:
            return await _one(tasks, task, agent, boxes)

    running = [asyncio.ensure_future(one(task, agent)) for task in tasks.tasks for agent in ("oracle", "nop")]
    try:
        for done in asyncio.as_completed(running):
            yield await done
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _one(tasks: TerminalTasks, task: TerminalTask, agent: str, boxes: OnDemand) -> Checked:
    situation, wanted = tasks.of(task), 1.0 if agent == "oracle" else 0.0
    began = asyncio.get_running_loop().time()
    code: int | None = 0
    spoken = ""
    found: dict[str, Any] = {"reward": None}
    try:
        async with boxes.lease(situation.box) as box:
            if agent == "oracle":
                code, spoken = await solve(task, box, situation)
            verdict = await graded(task, box, situation.cwd)
        found = {"reward": verdict.reward, "detail": verdict.why, "said": verdict.said}
    except RockrollError as error:
        found["detail"] = error.message
    found["seconds"] = round(asyncio.get_running_loop().time() - began, 3)
    if found["reward"] == wanted:
        return Checked(task.name, agent, True, **{**found, "said": ""})
    found["said"] = "\n".join((spoken + "\n" + str(found.get("said") or "")).strip().splitlines()[-LINES:])
    found["detail"] = found.get("detail") or f"it earned {found['reward']:g} in place of {wanted:g}"
    return Checked(task.name, agent, False, cure=_cure(task, agent, boxes.config, code, found["reward"]), **found)


def _cure(task: TerminalTask, agent: str, config: SandboxConfig, code: int | None, reward: float | None) -> str:
    if agent == "nop" and reward is not None:
        return "the tests pass, or give something, before anything was done: an agent would be paid for nothing"
    if task.network and config.network == "none":
        return (
            "it was written for a box with a network, and this one has none: --network open, or install what it needs "
            "in its Dockerfile"
        )
    if reward is None and code == 0 and task.solution is not None:
        return "the tests end by writing one number from 0 to 1 to /logs/verifier/reward.txt, whatever they found"
    if agent == "oracle" and task.solution is None:
        return "add solution/solve.sh: without one nobody knows that the task can be solved"
    if code is None:
        return "the solution was ended at the agent's time limit, or by the box's memory"
    if agent == "oracle" and code:
        return f"the solution ended with exit code {code}; run it by hand: rockroll sandbox up, then its lines"
    return (
        "the tests see a copy of the box in which nothing runs: a server that the solution started is gone; have it "
        "started by the tests, or by what they look at"
    )
