"""One episode, from its start to its one outcome.

In: a task, a seed, the engine through a Dialogue, and for agents a sandbox and a route to the relay. Out: an Episode,
whatever happens, but for a cancellation and for failures that would meet every episode alike. Leaves replacing and
comparing to group.py, and the number of episodes at once to runner.py.

    Env:    game.reset ──► ask ──► game.step ──► ask … ──► the sum of rewards      in a leased box: where: sandbox
    agent:  lease ──► route, files ──► the agent runs, its calls arrive at `chat` ──► its processes killed ──► grade

What happened is one word; verdict.py says whose doing that was and what becomes of the score, clock.py when the time is
up and who held the episode.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
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
from rockroll.rollout.clock import TimeUp, Watch
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.sample import Episode, Placed
from rockroll.rollout.tasks import AgentTask, EnvTask, Game, Task
from rockroll.rollout.verdict import TABLE, AgentRun, Happened, of_agent, of_time
from rockroll.sandbox.on_demand import OnDemand
from rockroll.sandbox.wire import Observation

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from rockroll.sandbox.client import Sandbox
    from rockroll.sandbox.config import SandboxConfig

FATAL = (HostError, ImageMissing, LimitNotEnforced, PeerLost, ProcessDied)
"""Failures that the next episode would meet too: they end the batch."""


class Boxes(Protocol):
    """Where sandboxes come from: `sandbox.pool.Pool`, or `sandbox.on_demand.OnDemand`."""

    @property
    def config(self) -> SandboxConfig: ...

    def lease(self) -> AbstractAsyncContextManager[Sandbox]: ...


LOG_KEPT = 2000
"""Characters of what an agent said last, in its episode's record."""

FULL = 0.95
"""Share of its limit from which on a box's disk counts as full: what is left then are odd blocks."""


@dataclass(frozen=True)
class Ending:
    """How an episode ended, and what it earned (None where that does not count)."""

    happened: Happened
    earned: float | None = None
    detail: str = ""
    log: str = ""
    """The end of what the agent said."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which episode this is."""

    id: str
    seed: int
    split: Split
    group: int
    index: int
    level: int = 0


class Attempt:
    """One episode under way. `run` once; `sampled` and `cancelled` are there for an episode that was cancelled.

    cap, stall: the limits of clock.py, in seconds.
    """

    def __init__(
        self,
        place: Place,
        task: Task,
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
            ending = await self._attempt()
        finally:
            await self.dialogue.close()
        return self._episode(ending)

    def cancelled(self) -> Episode:
        """The record of this episode after it was cancelled."""
        return self._episode(Ending("cancelled"))

    async def _attempt(self) -> Ending:
        """How it ended, with what it raises turned into what happened."""
        try:
            if isinstance(task := self._task, EnvTask):
                if task.source is not None:
                    return await self._in_box(task)
                return await self._watch.within(self._play(lambda: task.game(self.place.split)))
            return await self._with_sandbox(task)
        except TimeUp as up:
            self.dialogue.killed()
            happened = of_time(up.expired)
            return Ending(happened, None, self._time_up(happened, up))
        except EnvError as error:
            return Ending("env_raised", None, str(error))
        except SandboxLost as error:
            cause = error.fields.get("cause") if "agent" in self._watch.clock.spent else None
            run = AgentRun(asked=bool(self.dialogue.asked), outcome="lost", box=cause)
            return Ending(of_agent(run), None, str(error))
        except FATAL:
            raise
        except SandboxError as error:
            return Ending("ours_failed", None, str(error))
        except RockrollError as error:
            return Ending("engine_failed", None, str(error))

    def _time_up(self, happened: Happened, up: TimeUp) -> str:
        limit, holder, seconds = up.expired
        if limit == "agent":
            return f"the agent's time limit of {seconds:g} s, without what it waited for the model"
        whose = {"ours": "rockroll", "env": "the environment"}.get(holder, f"the {holder}")
        if limit == "stall":
            return f"rollout stall_timeout: nothing happened for {seconds:g} s, and {whose} held the episode"
        spent = self._watch.clock.spent.get(holder, 0.0)
        return f"rollout episode_timeout of {seconds:g} s, {spent:.1f} of them in {whose}"

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
        raise self._fault() or error

    # ---- an agent --------------------------------------------------------------------------------------------

    async def _with_sandbox(self, task: AgentTask) -> Ending:
        situation = self._situation(task)
        if situation.timeout is not None:
            self._watch.limit("agent", situation.timeout)
        async with self._lease(task, situation.box) as sandbox:
            self._watch.hold("env")
            return await self._watch.within(self._work(task, sandbox, situation))

    def _situation(self, task: AgentTask) -> Situation:
        try:
            return task.task.situation(self.place.seed, self.place.split)
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(f"{task.name}: situation raised {type(error).__name__}: {error}") from error

    async def _work(self, task: AgentTask, sandbox: Sandbox, situation: Situation) -> Ending:
        self._watch.hold("ours")
        try:
            config = task.agent.config
            await route(sandbox, self._upstream, self.dialogue.id, config.budget.bounds(), config.mcp)
            await task.agent.put(sandbox, {situation.path(name): data for name, data in situation.files.items()})
            self._watch.hold("agent")
            observation = await self._run_agent(task, sandbox, situation)
            self._watch.hold("ours")
            await task.agent.end(sandbox)
            alive = observation is None or observation.outcome != "lost"
            if observation is None or observation.outcome != "ok":
                self.dialogue.killed()
            await self.dialogue.close()
            # The relay may not have been told yet why the agent's last call was refused; the node knows.
            if alive and (why := await route(sandbox, None, "")):
                self.dialogue.spent(why)
            if fault := self._fault():
                raise fault
            run = await self._facts(sandbox, observation)
        except PeerLost as error:
            # The node died, and its boxes with it. The pool's next lease starts another, or says why it cannot.
            raise SandboxLost(str(error)) from error
        happened = of_agent(run)
        said = "" if observation is None else observation.output.strip()[-LOG_KEPT:]
        if alive and (logs := await self._logs(task, sandbox)):
            said = f"{said}\n{logs}".strip()
        detail = self._detail(happened, task, sandbox, observation)
        if TABLE[happened].score != "earned":
            return Ending(happened, None, detail, said)
        self._watch.hold("env")
        return Ending(happened, await self._grade(task, sandbox, situation), detail, said)

    async def _logs(self, task: AgentTask, sandbox: Sandbox) -> str:
        """What the agent wrote down of its own work. A box that cannot tell has its own part in what happened."""
        try:
            return await task.agent.logs(sandbox)
        except PeerLost as error:
            raise SandboxLost(str(error)) from error
        except SandboxError as error:
            return f"its log files could not be read: {error}"

    async def _facts(self, sandbox: Sandbox, observation: Observation | None) -> AgentRun:
        """What is known of the agent's run. The box is looked at only where the agent ended badly."""
        asked, over_budget = bool(self.dialogue.asked), self.dialogue.truncated is not None
        if observation is None:
            return AgentRun(asked=asked, outcome=None, over_budget=over_budget)
        died, full, events = False, False, observation.events
        if observation.outcome == "killed":
            died = (await sandbox.refresh()).state != "running"
        elif observation.outcome == "ok" and observation.exit_code:
            stats = await sandbox.stats()
            full = bool(stats.disk_limit) and stats.disk_bytes >= FULL * stats.disk_limit
        return AgentRun(
            asked=asked,
            outcome=observation.outcome,
            exit_code=observation.exit_code,
            box=observation.cause,
            box_died=died,
            over_budget=over_budget,
            events=events,
            disk_full=full,
        )

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

    def _detail(self, happened: Happened, task: AgentTask, sandbox: Sandbox, observation: Observation | None) -> str:
        """One sentence on what happened to the agent."""
        if happened == "budget":
            return self.dialogue.truncated or ""
        if observation is None:
            return "the agent went on asking after it had been refused"
        how = observation.outcome if observation.outcome != "ok" else f"exit code {observation.exit_code}"
        said = observation.output.strip()[-400:] or "it said nothing"
        match happened:
            case "finished":
                return ""
            case "agent_mute":
                return f"the agent ({task.agent.config.label}) ended without asking the model ({how}): {said}"
            case "memory":
                return "the agent was ended at the sandbox's memory limit"
            case "pids":
                refused = observation.events["pids_refused"]
                return f"the agent ended ({how}) where {refused} forks were over the sandbox's pids: {said}"
            case "disk":
                return f"the agent ended ({how}) with the sandbox's disk full: {said}"
            case "agent_killed":
                return f"the agent was ended by a signal from inside its sandbox ({how})"
            case "agent_crashed":
                return f"the agent ended by itself with {how}: {said}"
            case "shell_ended":
                return f"the agent's shell ended: {observation.outcome}"
        return f"sandbox {sandbox.id} died under its agent; cause: {observation.cause or observation.outcome}"

    # ---- both ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _lease(self, task: Task, box: Mapping[str, Any] | None = None) -> AsyncIterator[Sandbox]:
        """A box for this episode, a warm one where it asks for none of its own; where it is has been told."""
        if self._boxes is None:
            raise HostError(f"{task.name} takes sandboxes, and this rollout was given no pool of them")
        own = OnDemand(self._boxes.config).lease(box) if box else None
        async with own or self._boxes.lease() as sandbox:
            info = sandbox.info
            self._at = Placed(self.place.id, task.name, info.id, info.node, time.time())
            self._placed(self._at)
            yield sandbox

    def _fault(self) -> Exception | None:
        """The engine's failure, if that is why the dialogue is over: an error of ours."""
        error = self.dialogue.over.result() if self.dialogue.over.done() else None
        if error is None or isinstance(error, RockrollError):
            return error
        return RockrollError(f"the engine failed: {type(error).__name__}: {error}")

    def _episode(self, ending: Ending) -> Episode:
        place, spent, at = self.place, self._watch.clock.spent, self._at
        took = sum(seconds for name, seconds in spent.items() if name != "pool")
        outcome, cause, score = TABLE[ending.happened]
        if outcome not in ("ok", "truncated"):
            self.dialogue.killed()
        reward = {"earned": ending.earned, "failure": self._task.config.failure_reward, "replaced": None}[score]
        return Episode(
            id=place.id,
            task=self._task.name,
            seed=place.seed,
            group=place.group,
            index=place.index,
            outcome=outcome,
            cause=cause,
            reward=reward,
            samples=self.dialogue.transcript.samples(),
            turns=self.dialogue.turns,
            duration_s=took,
            detail=ending.detail,
            turn_rewards=self._turn_rewards,
            record=self.dialogue.record,
            happened=ending.happened,
            log=ending.log,
            level=place.level,
            spent_s={name: round(seconds, 4) for name, seconds in spent.items()},
            began_at=time.time() - took,
            sandbox=at.sandbox if at else "",
            node=at.node if at else "",
        )
