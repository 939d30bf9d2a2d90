"""One agent at work in one sandbox: from its route to the word for what happened to it.

In: an agent, a sandbox with a session for it, the dialogue that answers its calls. Out: what happened, one sentence on
it, the end of what it said; nothing that it started is alive then. Leaves times to clock.py, scores to verdict.py and
what else an episode is to episode.py and team_episode.py.

    prepare ──► run ──► finish
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rockroll.agent.command import CommandAgent, route
from rockroll.errors import PeerLost, RockrollError, SandboxError, SandboxLost
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.verdict import AgentRun, Happened, of_agent
from rockroll.sandbox.wire import DEFAULT_SESSION, Observation

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

LOG_KEPT = 2000
"""Characters of what an agent said last, in its episode's record."""
FULL = 0.95
"""Share of its limit from which on a box's disk counts as full: what is left then are odd blocks."""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """How an agent's work ended."""

    happened: Happened
    run: AgentRun
    detail: str
    log: str
    """The end of what it printed, and of its log files."""


class Worker:
    """seat: which of the box's model endpoints is its. session: open already."""

    def __init__(
        self,
        agent: CommandAgent,
        sandbox: Sandbox,
        dialogue: Dialogue,
        upstream: str,
        *,
        seat: int = 0,
        session: str = DEFAULT_SESSION,
    ) -> None:
        self.sandbox, self.dialogue = sandbox, dialogue
        self._agent, self._upstream = agent, upstream
        self._seat, self._session = seat, session
        self._observation: Observation | None = None

    async def prepare(self, files: Mapping[str, bytes]) -> None:
        """From now on its calls are answered, and its files are there."""
        config = self._agent.config
        await route(self.sandbox, self._upstream, self.dialogue.id, config.budget.bounds(), config.mcp, seat=self._seat)
        await self._agent.put(self.sandbox, files)

    async def run(self, instruction: str, cwd: str, env: Mapping[str, str]) -> None:
        """Until it ends, or its dialogue is over before it. Cancelled, it is killed."""
        run = self._agent.run(self.sandbox, instruction, cwd, env, session=self._session)
        running = asyncio.ensure_future(run)
        over = self.dialogue.over
        try:
            await asyncio.wait((running, over), return_when=asyncio.FIRST_COMPLETED)
            self._observation = running.result() if running.done() else None
        finally:
            if not running.done():
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def finish(self) -> Worked:
        """Ends its processes, its calls and its route. Raises the engine's failure, where that ended it."""
        observation = self._observation
        await self._agent.end(self.sandbox, self._session)
        alive = observation is None or observation.outcome != "lost"
        if observation is None or observation.outcome != "ok":
            self.dialogue.killed()
        await self.dialogue.close()
        # The relay may not have been told yet why the agent's last call was refused; the node knows.
        if alive and (why := await route(self.sandbox, None, "", seat=self._seat)):
            self.dialogue.spent(why)
        if fault := self._fault():
            raise fault
        run = await self._facts(observation)
        happened = of_agent(run)
        said = "" if observation is None else observation.output.strip()[-LOG_KEPT:]
        if alive and (logs := await self._logs()):
            said = f"{said}\n{logs}".strip()
        return Worked(happened=happened, run=run, detail=self._detail(happened, observation), log=said)

    async def stop(self) -> str:
        """Ends its processes, its calls and its route before it has ended by itself; the end of its log files."""
        self.dialogue.killed()
        await self._agent.end(self.sandbox, self._session)
        await self.dialogue.close()
        await route(self.sandbox, None, "", seat=self._seat)
        return await self._logs()

    async def _logs(self) -> str:
        """What the agent wrote down of its own work. A box that cannot tell has its own part in what happened."""
        try:
            return await self._agent.logs(self.sandbox)
        except PeerLost as error:
            raise SandboxLost(str(error)) from error
        except SandboxError as error:
            return f"its log files could not be read: {error}"

    async def _facts(self, observation: Observation | None) -> AgentRun:
        """What is known of the agent's run. The box is looked at only where the agent ended badly."""
        asked, over_budget = bool(self.dialogue.asked), self.dialogue.truncated is not None
        if observation is None:
            return AgentRun(asked=asked, outcome=None, over_budget=over_budget)
        died, full, events = False, False, observation.events
        if observation.outcome == "killed":
            died = (await self.sandbox.refresh()).state != "running"
        elif observation.outcome == "ok" and observation.exit_code:
            stats = await self.sandbox.stats()
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

    def _detail(self, happened: Happened, observation: Observation | None) -> str:
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
                return f"the agent ({self._agent.config.label}) ended without asking the model ({how}): {said}"
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
        return f"sandbox {self.sandbox.id} died under its agent; cause: {observation.cause or observation.outcome}"

    def _fault(self) -> Exception | None:
        return fault(self.dialogue)


def fault(dialogue: Dialogue) -> Exception | None:
    """The engine's failure, if that is why the dialogue is over: an error of ours."""
    error = dialogue.over.result() if dialogue.over.done() else None
    if error is None or isinstance(error, RockrollError):
        return error
    return RockrollError(f"the engine failed: {type(error).__name__}: {error}")
