"""One episode, from its start to its one outcome.

In: a task, a seed, the engine through a Dialogue, and for agents a sandbox and a route to the relay. Out: an Episode,
whatever happens, but for a cancellation and for failures that would meet every episode alike. Leaves replacing and
comparing to group.py, and the number of episodes at once to runner.py.

    Env:    game.reset ──► ask ──► game.step ──► ask … ──► the sum of rewards
    agent:  lease ──► route, files ──► the agent runs, its calls arrive at `chat` ──► its processes killed ──► grade

Whose doing an outcome is:
    policy   the turn, token or context budget, the agent's time limit, its memory: `truncated`, scored as it stands
    agent    it ended without asking the model anything: not scored, since the policy had no part in it
    env      the task raised, or did not keep its contract: not scored
    infra    the sandbox died, the engine failed, the machinery took the time: not scored
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rockroll.agent.command import route
from rockroll.env.api import Situation, Split
from rockroll.errors import (
    EnvError,
    FileError,
    HostError,
    ImageMissing,
    LimitNotEnforced,
    ModelServiceError,
    PeerLost,
    ProcessDied,
    RockrollError,
    SandboxError,
    SandboxLost,
)
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.sample import Cause, Episode, Outcome, Placed
from rockroll.rollout.tasks import AgentTask, EnvTask, Task
from rockroll.sandbox.wire import Observation

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from rockroll.sandbox.client import Sandbox

FATAL = (HostError, ImageMissing, LimitNotEnforced, PeerLost, ProcessDied)
"""Failures that the next episode would meet too: they end the batch."""


class Boxes(Protocol):
    """Where sandboxes come from: `sandbox.pool.Pool`."""

    def lease(self) -> AbstractAsyncContextManager[Sandbox]: ...


@dataclass(frozen=True)
class Ending:
    """How an episode ended, and what it earned."""

    outcome: Outcome
    reward: float | None = None
    cause: Cause | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which episode this is."""

    id: str
    seed: int
    split: Split
    group: int
    index: int


class Attempt:
    """One episode under way. `run` once; `sampled` and `cancelled` are there for an episode that was cancelled."""

    def __init__(
        self,
        place: Place,
        task: Task,
        dialogue: Dialogue,
        timeout: float,
        boxes: Boxes | None,
        upstream: str,
        placed: Callable[[Placed], None] = lambda _: None,
    ) -> None:
        self.place = place
        self.dialogue = dialogue
        self._task, self._timeout, self._boxes, self._upstream = task, timeout, boxes, upstream
        self._began: float | None = None
        self._placed = placed
        self._at: Placed | None = None
        self._turn_rewards: list[float] = []

    async def run(self) -> Episode:
        """Raises only what is FATAL, and CancelledError."""
        try:
            task = self._task
            if isinstance(task, EnvTask):
                ending = await self._within_time(self._play(task))
            else:
                ending = await self._with_sandbox(task)
        finally:
            await self.dialogue.close()
        return self._episode(ending)

    def cancelled(self) -> Episode:
        """The record of this episode after it was cancelled."""
        return self._episode(Ending("cancelled"))

    async def _within_time(self, play: Coroutine[Any, Any, Ending]) -> Ending:
        """How `play` ended, with what it raises turned into an outcome."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        try:
            async with asyncio.timeout(self._timeout or None):
                return await play
        except TimeoutError:
            waited = self.dialogue.waited_s
            return Ending(
                "timeout",
                None,
                "infra",
                f"rollout episode_timeout of {self._timeout} s, {waited:.1f} of them in the engine",
            )
        except EnvError as error:
            return Ending("env_error", None, "env", str(error))
        except FATAL:
            raise
        except RockrollError as error:
            return Ending("infra_error", None, "infra", str(error))

    # ---- an Env ----------------------------------------------------------------------------------------------

    async def _play(self, task: EnvTask) -> Ending:
        game = task.game(self.place.split)
        try:
            messages = await game.reset(self.place.seed, self.place.split)
            while True:
                try:
                    turn = await self.dialogue.ask(messages)
                except ModelServiceError as error:
                    return self._cut(sum(self._turn_rewards), error)
                text, reward, terminated, truncated = await game.step(turn.text)
                self._turn_rewards.append(reward)
                if terminated:
                    return Ending("ok", sum(self._turn_rewards))
                if truncated:
                    return Ending(
                        "truncated", sum(self._turn_rewards), "policy", "the environment's own limit of steps"
                    )
                messages = [*turn.history, {"role": "user", "content": text}]
        finally:
            game.close()

    def _cut(self, total: float, error: ModelServiceError) -> Ending:
        """The loop's own call was refused: for want of budget, or because the engine failed."""
        if self.dialogue.truncated:
            return Ending("truncated", total, "policy", self.dialogue.truncated)
        raise self._fault() or error

    # ---- an agent --------------------------------------------------------------------------------------------

    async def _with_sandbox(self, task: AgentTask) -> Ending:
        if self._boxes is None:
            raise HostError(f"{task.name} is worked on in sandboxes, and this rollout was given no pool of them")
        async with self._boxes.lease() as sandbox:
            info = sandbox.info
            self._at = Placed(self.place.id, task.name, info.id, info.node, time.time())
            self._placed(self._at)
            return await self._within_time(self._work(task, sandbox))

    async def _work(self, task: AgentTask, sandbox: Sandbox) -> Ending:
        try:
            situation = task.task.situation(self.place.seed, self.place.split)
        except Exception as error:
            raise EnvError(f"{task.name}: situation raised {type(error).__name__}: {error}") from error
        try:
            await route(sandbox, self._upstream, self.dialogue.id, task.agent.config.budget.bounds())
            await task.agent.put(sandbox, {situation.path(name): data for name, data in situation.files.items()})
            observation = await self._run_agent(task, sandbox, situation)
            await task.agent.end(sandbox)
        except PeerLost as error:
            # The node died, and its boxes with it. The pool's next lease starts another, or says why it cannot.
            raise SandboxLost(str(error)) from error
        if observation is None or observation.outcome != "ok":
            self.dialogue.killed()
        await self.dialogue.close()
        try:
            # The relay may not have been told yet why the agent's last call was refused; the node knows.
            if why := await route(sandbox, None, ""):
                self.dialogue.spent(why)
        except PeerLost as error:
            raise SandboxLost(str(error)) from error
        if fault := self._fault():
            raise fault
        if observation is not None:
            if observation.outcome == "lost":
                raise SandboxLost(f"sandbox {sandbox.id} died under its agent; cause: {observation.cause}")
            if observation.outcome == "killed" and (await sandbox.refresh()).state != "running":
                raise SandboxLost(f"sandbox {sandbox.id} was killed under its agent")
            if not self.dialogue.asked and not self.dialogue.truncated:
                return Ending("env_error", None, "agent", _unasked(task, observation))
            if observation.outcome == "timeout" and 2 * self.dialogue.waited_s > task.agent.config.timeout:
                waited = (
                    f"{self.dialogue.waited_s:.1f} of the agent's {task.agent.config.timeout} s went by in the engine"
                )
                return Ending("timeout", None, "infra", waited)
        return self._scored(await self._grade(task, sandbox, situation), task, observation)

    async def _run_agent(self, task: AgentTask, sandbox: Sandbox, situation: Situation) -> Observation | None:
        """The agent's run, or None where the dialogue was over before it."""
        run = task.agent.run(sandbox, situation.instruction, situation.cwd, situation.env)
        running = asyncio.ensure_future(run)
        over = self.dialogue.over
        try:
            await asyncio.wait((running, over), return_when=asyncio.FIRST_COMPLETED)
            return running.result() if running.done() else None
        finally:
            if not running.done():
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def _grade(self, task: AgentTask, sandbox: Sandbox, situation: Situation) -> float:
        try:
            reward = float(await task.task.grade(sandbox, situation))
        except FileError:
            return 0.0
        except PeerLost as error:
            raise SandboxLost(str(error)) from error
        except (SandboxError, EnvError):
            raise
        except Exception as error:
            raise EnvError(f"{task.name}: grade raised {type(error).__name__}: {error}") from error
        if not math.isfinite(reward):
            raise EnvError(f"{task.name}: a reward is a finite number; grade returned {reward!r}")
        return reward

    def _scored(self, reward: float, task: AgentTask, observation: Observation | None) -> Ending:
        """What the policy did to itself, or had no budget for, is scored as it stands."""
        if self.dialogue.truncated:
            return Ending("truncated", reward, "policy", self.dialogue.truncated)
        if observation is None:
            return Ending("truncated", reward, "policy", "the agent went on asking after it had been refused")
        if observation.outcome == "timeout":
            return Ending("truncated", reward, "policy", f"the agent's time limit of {task.agent.config.timeout} s")
        if observation.outcome != "ok":
            return Ending("truncated", reward, "policy", f"the agent's shell ended: {observation.outcome}")
        return Ending("ok", reward)

    # ---- both ------------------------------------------------------------------------------------------------

    def _fault(self) -> Exception | None:
        """The engine's failure, if that is why the dialogue is over: an error of ours."""
        error = self.dialogue.over.result() if self.dialogue.over.done() else None
        if error is None or isinstance(error, RockrollError):
            return error
        return RockrollError(f"the engine failed: {type(error).__name__}: {error}")

    def _episode(self, ending: Ending) -> Episode:
        began, place, at = self._began, self.place, self._at
        took = 0.0 if began is None else asyncio.get_running_loop().time() - began
        if ending.outcome not in ("ok", "truncated"):
            self.dialogue.killed()
        return Episode(
            id=place.id,
            task=self._task.name,
            seed=place.seed,
            group=place.group,
            index=place.index,
            outcome=ending.outcome,
            cause=ending.cause,
            reward=ending.reward,
            samples=self.dialogue.transcript.samples(),
            turns=self.dialogue.turns,
            duration_s=took,
            detail=ending.detail,
            turn_rewards=self._turn_rewards,
            record=self.dialogue.record,
            began_at=time.time() - took,
            sandbox=at.sandbox if at else "",
            node=at.node if at else "",
        )


def _unasked(task: AgentTask, observation: Observation) -> str:
    said = observation.output.strip()[-400:]
    how = observation.outcome if observation.outcome != "ok" else f"exit code {observation.exit_code}"
    return (
        f"the agent ({task.agent.config.command}) ended without asking the model ({how}): {said or 'it said nothing'}"
    )
