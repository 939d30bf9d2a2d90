"""One episode, from its start to its one outcome.

In: a task, a seed, the engine through a Dialogue, and for agents a sandbox and a route to the relay. Out: an Episode,
whatever happens, but for a cancellation and for failures that would meet every episode alike. Leaves replacing and
comparing to group.py, the number of episodes at once to runner.py, several agents to team_episode.py, and what it comes
to as a record to ending.py.

    Env:    game.reset ──► ask ──► game.step ──► ask … ──► the sum of rewards      in a leased box: where: sandbox
    agent:  lease ──► route, files ──► the agent runs, its calls arrive at `chat` ──► its processes killed ──► grade

What happened is one word; verdict.py says whose doing that was and what becomes of the score, clock.py when the time is
up and who held the episode.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from rockroll.env.api import Situation
from rockroll.errors import HostError, ModelServiceError, PeerLost, SandboxLost
from rockroll.rollout.at_work import Worker, fault
from rockroll.rollout.clock import Watch
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.ending import Ending, Place, ending_of, recorded
from rockroll.rollout.grade import graded, number, situation_of
from rockroll.rollout.sample import Episode, Placed
from rockroll.rollout.tasks import AgentTask, EnvTask, Game
from rockroll.sandbox.on_demand import OnDemand

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.config import SandboxConfig


class Boxes(Protocol):
    """Where sandboxes come from: `sandbox.pool.Pool`, or `sandbox.on_demand.OnDemand`."""

    @property
    def config(self) -> SandboxConfig: ...

    def lease(self) -> AbstractAsyncContextManager[Sandbox]: ...


class Attempt:
    """One episode under way. `run` once; `sampled` and `cancelled` are there for an episode that was cancelled.

    cap, stall: the limits of clock.py, in seconds.
    """

    def __init__(
        self,
        place: Place,
        task: EnvTask | AgentTask,
        dialogue: Dialogue,
        boxes: Boxes | None,
        upstream: str,
        placed: Callable[[Placed], None] = lambda _: None,
        *,
        cap: float,
        stall: float,
    ) -> None:
        self.place = place
        self.dialogue = dialogue
        self._task, self._boxes, self._upstream = task, boxes, upstream
        agent = task.agent.config.timeout if isinstance(task, AgentTask) else math.inf
        self._watch = Watch(cap=cap, stall=stall, agent=agent)
        dialogue.on_wait = self._watch.asks
        self._placed = placed
        self._at: Placed | None = None
        self._turn_rewards: list[float] = []

    async def run(self) -> Episode:
        """Raises only what is FATAL, and CancelledError."""
        try:
            ending = await ending_of(self._attempt(), self._watch, {"": self.dialogue})
        finally:
            await self.dialogue.close()
        return self._episode(ending)

    @property
    def spent_tokens(self) -> int:
        """Sampled so far."""
        return self.dialogue.spent_tokens

    def cancelled(self) -> Episode:
        """The record of this episode after it was cancelled."""
        return self._episode(Ending("cancelled"))

    async def _attempt(self) -> Ending:
        if isinstance(task := self._task, AgentTask):
            return await self._with_sandbox(task)
        if task.source is not None:
            return await self._in_box(task)
        return await self._watch.within(self._play(lambda: task.game(self.place.split)))

    # ---- an Env ----------------------------------------------------------------------------------------------

    async def _in_box(self, task: EnvTask) -> Ending:
        """The same, in a sandbox. The lease's end kills what runs there, whatever became of the episode."""
        async with self._lease(task) as sandbox, contextlib.aclosing(task.boxed(sandbox, self.place.split)) as env:
            return await self._watch.within(self._play(lambda: Game(env, slow=False)))

    async def _play(self, made: Callable[[], Game]) -> Ending:
        self._watch.hold("env")
        game = made()
        game.vocabulary = self.dialogue.vocabulary
        try:
            messages = await game.reset(self.place.seed, self.place.split)
            while True:
                try:
                    turn = await self.dialogue.ask(messages, game.wishes)
                except ModelServiceError as error:
                    return self._cut(sum(self._turn_rewards), error)
                answers, reward, terminated, truncated = await game.step(turn)
                self._turn_rewards.append(reward)
                if terminated:
                    return Ending("finished", sum(self._turn_rewards))
                if truncated:
                    return Ending("env_limit", sum(self._turn_rewards), "the environment's own limit of steps")
                messages = [*turn.history, *answers]
        finally:
            game.close()

    def _cut(self, total: float, error: ModelServiceError) -> Ending:
        """The loop's own call was refused: for want of budget, or because the engine failed."""
        if self.dialogue.truncated:
            return Ending("budget", total, self.dialogue.truncated)
        raise fault(self.dialogue) or error

    # ---- an agent --------------------------------------------------------------------------------------------

    async def _with_sandbox(self, task: AgentTask) -> Ending:
        situation = situation_of(task.name, task.task, self.place.seed, self.place.split)
        if situation.timeout is not None:
            self._watch.limit("agent", situation.timeout)
        async with self._lease(task, situation.box) as sandbox:
            self._watch.hold("env")
            return await self._watch.within(self._work(task, sandbox, situation))

    async def _work(self, task: AgentTask, sandbox: Sandbox, situation: Situation) -> Ending:
        self._watch.hold("ours")
        worker = Worker(task.agent, sandbox, self.dialogue, self._upstream)
        try:
            await worker.prepare({situation.path(name): data for name, data in situation.files.items()})
            self._watch.hold("agent")
            await worker.run(situation.instruction, situation.cwd, situation.env)
            self._watch.hold("ours")
            worked = await worker.finish()
        except PeerLost as error:
            # The node died, and its boxes with it. The pool's next lease starts another, or says why it cannot.
            raise SandboxLost(str(error)) from error
        ending = Ending(worked.happened, None, worked.detail, worked.log)
        if ending.verdict.score != "earned":
            return ending
        self._watch.hold("env")
        earned = await graded(task.name, lambda: task.task.grade(sandbox, situation))
        return replace(ending, earned=number(task.name, earned))

    # ---- both ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _lease(self, task: EnvTask | AgentTask, box: Mapping[str, Any] | None = None) -> AsyncIterator[Sandbox]:
        """A box for this episode, a warm one where it asks for none of its own; where it is has been told."""
        if self._boxes is None:
            raise HostError(f"{task.name} takes sandboxes, and this rollout was given no pool of them")
        own = OnDemand(self._boxes.config).lease(box) if box else None
        async with own or self._boxes.lease() as sandbox:
            info = sandbox.info
            self._at = Placed(self.place.id, task.name, info.id, info.node, time.time())
            self._placed(self._at)
            yield sandbox

    def _episode(self, ending: Ending) -> Episode:
        reward, talks = ending.reward(self._task.config), {"": self.dialogue}
        return recorded(
            *(self.place, self._task.name, ending, reward, talks, self._watch, self._at),
            turn_rewards=self._turn_rewards,
        )
