"""One episode of several agents, in one sandbox or in several.

In: a task, a seed, a Dialogue for each agent, and where each sandbox comes from. Out: an Episode, as episode.py makes
one, whose samples, calls and rewards say whose they are. Leaves who begins and what it comes to as an episode to
team.py, one agent's work to at_work.py, and the record to ending.py.

    lease every sandbox ──► endpoints, sessions, files ──► the agents, together or in turn ──► all are dead ──► grade

Every sandbox of an episode is taken before any of its agents begins, and given back with the others. They are taken in
the order in which the recipe names them, and all but the first from pools of this task alone: no two episodes can wait
for one another.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from rockroll.agent.command import take_seat
from rockroll.agent.team import MAIN
from rockroll.env.api import Part, Situation
from rockroll.errors import EnvError, FileError, HostError, PeerLost, SandboxLost
from rockroll.rollout.at_work import Worked, Worker
from rockroll.rollout.clock import TimeUp, Watch
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.ending import Ending, Place, ending_of, recorded
from rockroll.rollout.episode import Boxes
from rockroll.rollout.grade import graded, situation_of, time_up
from rockroll.rollout.sample import AgentRecord, Episode, Placed
from rockroll.rollout.tasks import TeamTask
from rockroll.rollout.team import BOX_GONE, Team, mean, of_member, shares
from rockroll.rollout.verdict import AgentRun, of_time
from rockroll.sandbox.on_demand import OnDemand
from rockroll.sandbox.wire import DEFAULT_SESSION

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox


class TeamAttempt:
    """One episode under way. `run` once; `spent_tokens` and `cancelled` are there for one that was cancelled.

    dialogues: by agent. boxes: by sandbox's name. cap, stall: the limits of clock.py, in seconds.
    """

    def __init__(
        self,
        place: Place,
        task: TeamTask,
        dialogues: Mapping[str, Dialogue],
        boxes: Mapping[str, Boxes],
        upstream: str,
        placed: Callable[[Placed], None] = lambda _: None,
        *,
        cap: float,
        stall: float,
    ) -> None:
        self.place = place
        self._task, self._dialogues, self._boxes, self._upstream = task, dialogues, boxes, upstream
        self._placed = placed
        self._at: Placed | None = None
        self._team = Team(task.team)
        self._watch = Watch(cap=cap, stall=stall)
        self._watches = {
            name: Watch(cap=math.inf, stall=math.inf, agent=agent.timeout) for name, agent in task.team.agents.items()
        }
        self._asking: set[str] = set()
        for name, dialogue in dialogues.items():
            dialogue.on_wait = self._listener(name)
        self._sandboxes: dict[str, Sandbox] = {}
        self._workers: dict[str, Worker] = {}
        self._told: dict[str, tuple[str, str]] = {}
        """(detail, log) of each agent that ended."""
        self._rewards: dict[str, float] = {}

    async def run(self) -> Episode:
        """Raises only what is FATAL, and CancelledError."""
        try:
            ending = await ending_of(self._with_sandboxes(), self._watch, self._dialogues)
        finally:
            for dialogue in self._dialogues.values():
                await dialogue.close()
        return self._episode(ending)

    @property
    def spent_tokens(self) -> int:
        """Sampled so far, by all agents."""
        return sum(dialogue.spent_tokens for dialogue in self._dialogues.values())

    def cancelled(self) -> Episode:
        """The record of this episode after it was cancelled."""
        return self._episode(Ending("cancelled"))

    def _listener(self, name: str) -> Callable[[bool], None]:
        """Told whether that agent waits for the model: its own clock, and the episode's, which is the engine's while
        any of them does."""

        def asks(asking: bool) -> None:
            self._watches[name].asks(asking)
            (self._asking.add if asking else self._asking.discard)(name)
            self._watch.asks(bool(self._asking))

        return asks

    async def _with_sandboxes(self) -> Ending:
        task = self._task
        situation = situation_of(task.name, task.task, self.place.seed, self.place.split)
        if strangers := set(situation.parts) - set(task.team.agents):
            raise EnvError(
                f"{task.name}: a situation has parts for agents of the team ({', '.join(task.team.agents)}); it names "
                f"{', '.join(sorted(strangers))}"
            )
        if situation.timeout is not None:
            for watch in self._watches.values():
                watch.limit("agent", situation.timeout)
        async with AsyncExitStack() as stack:
            for name in (MAIN, *task.team.sandboxes):
                boxes = self._boxes.get(name)
                if boxes is None:
                    raise HostError(f"{task.name} is worked on in sandboxes, and this rollout has no pool of {name}")
                own = OnDemand(boxes.config).lease(situation.box) if situation.box and name == MAIN else None
                self._sandboxes[name] = await stack.enter_async_context(own or boxes.lease())
            info = self._sandboxes[MAIN].info
            self._at = Placed(self.place.id, task.name, info.id, info.node, time.time())
            self._placed(self._at)
            self._watch.hold("env")
            return await self._watch.within(self._work(situation))

    async def _work(self, situation: Situation) -> Ending:
        task, team = self._task, self._team
        self._watch.hold("ours")
        try:
            env = await self._seat(situation)
            self._watch.hold("agent")
            await self._run_all(situation, env)
            self._watch.hold("ours")
        except PeerLost as error:
            raise SandboxLost(str(error)) from error
        happened, whose = team.happened(any(dialogue.asked for dialogue in self._dialogues.values()))
        detail = self._told.get(whose, ("", ""))[0]
        detail = f"{whose}: {detail}" if whose and detail else detail or "no agent asked the model anything"
        detail = "" if happened == "finished" else detail
        ending = Ending(happened, None, detail)
        if ending.verdict.score != "earned":
            return ending
        self._watch.hold("env")
        grade = await graded(task.name, lambda: self._grade(situation))
        failure = task.config.failure_reward
        self._rewards = shares(task.name, grade, list(task.team.agents), team.failed, failure)
        return dataclasses.replace(ending, earned=mean(self._rewards))

    async def _grade(self, situation: Situation) -> Any:
        task = self._task.task
        by_team: Callable[..., Awaitable[Any]] | None = getattr(task, "grade_team", None)
        if by_team is not None:
            return await by_team(dict(self._sandboxes), situation)
        return await task.grade(self._sandboxes[MAIN], situation)

    # ---- the agents ------------------------------------------------------------------------------------------

    async def _seat(self, situation: Situation) -> dict[str, dict[str, str]]:
        """Every agent has its endpoint, its session and its files; what its environment has beside the box's."""
        team, env = self._task.team, {}
        common = _absolute(situation, situation.files)
        for name, seat in team.seats.items():
            sandbox = self._sandboxes[team.agents[name].sandbox]
            session = f"agent-{name}" if seat else DEFAULT_SESSION
            at: dict[str, str] = {}
            if seat:
                at = await take_seat(sandbox, seat)
                await sandbox.create_session(session)
            part = situation.parts.get(name, Part())
            worker = self._workers[name] = Worker(
                self._task.agents[name],
                sandbox,
                self._dialogues[name],
                self._upstream,
                seat=seat,
                session=session,
            )
            await worker.prepare((common if not seat else {}) | _absolute(situation, part.files))
            env[name] = {**at, **situation.env, **part.env, "ROCKROLL_AGENT": name}
        return env

    async def _run_all(self, situation: Situation, env: Mapping[str, Mapping[str, str]]) -> None:
        """Until the team is over; nothing of any agent runs then."""
        team = self._team
        tasks: dict[asyncio.Task[Worked], str] = {}

        def begin(names: list[str]) -> None:
            for name in names:
                work = self._one(name, situation, env[name])
                tasks[asyncio.get_running_loop().create_task(work, name=name)] = name

        begin(team.begin())
        try:
            while tasks and not team.over:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    name = tasks.pop(each)
                    worked = each.result()
                    self._told[name] = worked.detail, worked.log
                    begin(team.ended(name, worked.happened))
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for name in team.working:
            if not self._gone(name):
                self._told[name] = "the episode was over before it", await self._workers[name].stop()
        team.stop()

    def _gone(self, name: str) -> bool:
        """Whether that agent's sandbox has died under another agent."""
        team = self._task.team
        box = team.agents[name].sandbox
        return any(team.agents[one].sandbox == box and fate in BOX_GONE for one, fate in self._team.fates.items())

    async def _one(self, name: str, situation: Situation, env: Mapping[str, str]) -> Worked:
        """One agent's work, to its end or to its own limit of time."""
        worker, watch, member = self._workers[name], self._watches[name], self._task.team.agents[name]
        part = situation.parts.get(name, Part())
        goal = situation.instruction if part.instruction is None else part.instruction
        said = f"{member.role.strip()}\n\n{goal}" if member.role.strip() else goal
        await self._take(name)
        watch.hold("agent")
        try:
            await watch.within(worker.run(said, situation.cwd, env))
        except TimeUp as up:
            log = await worker.stop()
            run = AgentRun(asked=True, outcome="timeout")
            return Worked(happened=of_time(up.expired), run=run, detail=time_up(up, watch.clock.spent), log=log)
        watch.hold("ours")
        worked = await worker.finish()
        return dataclasses.replace(worked, happened=of_member(worked.happened, worked.run))

    async def _take(self, name: str) -> None:
        """The files that it is given of agents before it, from their sandboxes into its own."""
        team = self._task.team
        to = self._sandboxes[team.agents[name].sandbox]
        for other, paths in team.agents[name].takes.items():
            source = self._sandboxes[team.agents[other].sandbox]
            for path in paths if source is not to else ():
                try:
                    for file in await _files(source, path):
                        await to.write_file(file, await source.read_file(file))
                except FileError:
                    continue  # the agent before it did not write it: that is its doing

    # ---- the record ------------------------------------------------------------------------------------------

    def _episode(self, ending: Ending) -> Episode:
        config, score = self._task.config, ending.verdict.score
        self._team.stop()
        if score != "earned":
            self._rewards = dict.fromkeys(self._dialogues, config.failure_reward) if score == "failure" else {}
        return recorded(
            *(self.place, self._task.name, ending, ending.reward(config), self._dialogues, self._watch, self._at),
            agents=map(self._agent, self._dialogues),
        )

    def _agent(self, name: str) -> AgentRecord:
        detail, log = self._told.get(name, ("", ""))
        worker = self._workers.get(name)
        spent = self._watches[name].clock.spent
        return AgentRecord(
            name=name,
            happened=self._team.fates[name],
            reward=self._rewards.get(name),
            turns=self._dialogues[name].turns,
            sandbox=worker.sandbox.id if worker else "",
            detail=detail,
            log=log,
            spent_s={who: round(spent[who], 4) for who in ("agent", "engine") if who in spent},
        )


def _absolute(situation: Situation, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {situation.path(path): data for path, data in files.items()}


async def _files(sandbox: Sandbox, path: str) -> list[str]:
    """That path, or the files in the folder of one that ends with /."""
    if not path.endswith("/"):
        return [path]
    return [f"{path}{entry.name}" for entry in await sandbox.list_files(path) if entry.kind == "file"]
