"""All the episodes of a run, or of an evaluation.

In: the trainer's steps, or the held-out seeds. Out: complete groups of valid episodes, or one valid episode for each
seed; events for the display as they happen. Leaves one episode to episode.py, the arithmetic of a group to group.py,
how far sampling runs ahead to stream.py, and what is done with the episodes to the controller.

A Rollout is open between `start` and `close` (or in `async with`): meanwhile its relay answers the agents' calls.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self, cast

from rockroll.agent.config import AgentConfig
from rockroll.agent.team import MAIN, TeamConfig, box_key
from rockroll.engine.api import Engine
from rockroll.env.apart import Workers
from rockroll.env.api import Split
from rockroll.errors import AgentError, EnvError, ModelServiceError, UsageError
from rockroll.model_service.budget import Over
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest
from rockroll.rollout.admission import Admission, Position
from rockroll.rollout.config import RolloutConfig, TaskConfig
from rockroll.rollout.curriculum_log import CurriculumLog
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.domain import HeldOut
from rockroll.rollout.ending import Place
from rockroll.rollout.episode import Attempt, Boxes
from rockroll.rollout.filters import Filter
from rockroll.rollout.group import GroupState, Start
from rockroll.rollout.guards import Guards
from rockroll.rollout.journal import Journal
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.mixture import Arm, Mixture
from rockroll.rollout.opened import Ended
from rockroll.rollout.owned import Owned
from rockroll.rollout.sample import Episode, Event, Group, Placed
from rockroll.rollout.seed import derive
from rockroll.rollout.stream import Stream
from rockroll.rollout.tasks import SEED_BITS, AgentTask, EnvTask, TeamTask, resolve_all
from rockroll.rollout.team_episode import TeamAttempt
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.wishes import Sampling

MODEL = "policy"
"""The name under which agents see the model. Any other name that they ask for is answered too."""


class Rollout:
    """Runs episodes of one task, or of several, against one engine.

    pool: where sandboxes come from, by the task's name where they differ; needed for a task that an agent works on.
    address: of the relay (`ipc://…`); needed then too. agent: one or a team, works on the tasks that need one and have
    none of their own; a team's further sandboxes come from the pools called `box_key(task, sandbox)`. seed: the run's;
    with the group it names every draw. events: told what happens, on the event loop.
    journal: has every answered turn before its agent has; its opener closes it, after this. curriculum: keeps what one
    has measured, for a run that goes on; its opener closes it.
    Raises UsageError for a task and an agent that do not go together.
    """

    def __init__(
        self,
        config: RolloutConfig,
        engine: Engine,
        pool: Boxes | Mapping[str, Boxes] | None,
        task: TaskConfig | Sequence[TaskConfig],
        agent: AgentConfig | TeamConfig | None,
        tokenizer: ChatTokenizer,
        *,
        seed: int = 0,
        address: str = "",
        events: Callable[[Event], None] = lambda _: None,
        journal: Journal | None = None,
        curriculum: CurriculumLog | None = None,
    ) -> None:
        self.configs = [task] if isinstance(task, TaskConfig) else list(task)
        self.tasks = resolve_all(self.configs, agent)
        slow = any(each.slow for each in self.configs)
        self._threads = ThreadPoolExecutor(config.concurrency, "env") if slow else None
        self._workers = Workers() if any(each.where == "process" for each in self.configs) else None
        self._boxes: dict[str, dict[str, Boxes]] = {}
        """By task, and by the sandbox's name: an agent that works alone has `main`."""
        for arm, each in self.tasks.items():
            if isinstance(each, EnvTask):
                apart = self._workers if each.config.where == "process" else None
                self.tasks[arm] = replace(each, threads=self._threads, workers=apart)
                if each.source is None:
                    continue
            named = (MAIN, *each.team.sandboxes) if isinstance(each, TeamTask) else (MAIN,)
            pools = pool if isinstance(pool, Mapping) else dict.fromkeys([arm.task], pool)
            found = {name: boxes for name in named if (boxes := pools.get(box_key(arm.task, name))) is not None}
            if len(found) < len(named) or (not isinstance(each, EnvTask) and not address):
                raise UsageError(
                    f"{each.name} takes sandboxes: a Rollout of it needs a pool of each ({', '.join(named)}), and for "
                    "an agent the relay's address"
                )
            self._boxes[arm.task] = found
        self.events = events
        self.mixture: Mixture | None = None
        """Which task a group is of, of the stream that was begun last."""
        self._config, self._engine, self._tokenizer = config, engine, tokenizer
        self._journal, self._curriculum = journal, curriculum
        self._seed, self._address = seed, address
        self._relay = None
        if any(isinstance(each, AgentTask | TeamTask) for each in self.tasks.values()):
            self._relay = Relay(address, self.chat, [MODEL], count=self.count, on_over=self._over)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._dialogues: dict[str, Dialogue] = {}
        """The episodes under way, by the token that their sandbox's route carries."""
        self._running = 0
        self._serial = journal.number * 1_000_000 if journal else 0  # no id stands twice in the journal
        self._context_length = 0

    async def start(self) -> Self:
        """Open the relay, and have the tasks prepare what they need. RockrollError where its address is taken."""
        self._context_length = (await self._engine.info()).context_length
        for task in self.tasks.values():
            if isinstance(task, AgentTask | TeamTask) and callable(prepare := getattr(task.task, "prepare", None)):
                await cast("Callable[[], Awaitable[None]]", prepare)()
        if self._relay:
            await self._relay.start()
        return self

    async def close(self) -> None:
        """Close the relay. Episodes end with the `batch` or `evaluate` that runs them."""
        if self._relay:
            await self._relay.close()
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._workers:
            await self._workers.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def stream(
        self,
        *,
        groups: int | None = None,
        episodes: int | None = None,
        version: int = 0,
        start: Position | None = None,
        batches: int | None = None,
        ledger: Ledger | None = None,
        in_order: bool = False,
    ) -> Stream:
        """Batches of complete groups, sampled ahead as far as the configuration's max_staleness allows.

        groups, episodes: of a batch and of a group; those of the configuration where None. version: of the weights the
        engine has. start: where to go on; a group's number names its task and every draw. batches: how many will be
        taken; None: no end. ledger: goes on with what it kept, in place of `start`, and is told what happens. in_order:
        as Admission takes it.
        It raises EnvError, AgentError or RockrollError when more episodes were spoiled than `replacements` allows, and
        at once what would meet every episode alike (a dead engine, a host that cannot run sandboxes).
        """
        config = self._config
        groups, episodes = groups or config.groups, episodes or config.episodes
        mixture = self.mixture = Mixture(
            self.configs,
            self._seed,
            batch=groups,
            curriculum=config.curriculum,
            past=self._curriculum.past if self._curriculum else (),
            log=self._curriculum.put if self._curriculum else lambda _: None,
        )
        guards = Guards(config, self.configs, groups * episodes)
        worth = Filter(config, groups)
        kept: set[int] = set()
        sampling = self._sampling(config.temperature, config.top_p)

        def state(number: int) -> GroupState:
            arm, seed = mixture.arm(number), derive(self._seed, "train", number, bits=SEED_BITS)
            return GroupState(number, arm.task, seed, episodes, config.redundancy.episodes, arm.level)

        def ended(episode: Episode) -> None:
            if ledger is not None:
                ledger.put(Ended(episode))

        async def collect(state: GroupState) -> Group:
            tries = 0
            while (group := await self._group(state, "train", sampling, guards, mixture, ended)) is None:
                tries += 1
                arm = mixture.arm(state.id)
                state.restart(*arm, derive(self._seed, "train", state.id, "instead", tries, bits=SEED_BITS))
            guards.of(group.task).earn(episodes)
            if worth(group):
                kept.add(group.id)
            mixture.measure(group.id, Arm(group.task, group.level), group.pass_rate, group.id in kept)
            return group

        def keep(group: Group) -> bool:
            known = group.id in kept
            kept.discard(group.id)
            return known

        admission = Admission(
            groups,
            config.max_staleness,
            extra=config.redundancy.groups,
            on_stale=config.on_stale,
            version=version,
            start=ledger.past.position if ledger else start,
            batches=batches,
            in_order=in_order,
        )
        return Stream(
            admission,
            state,
            collect,
            keep,
            past=ledger.past if ledger else None,
            note=ledger.put if ledger else lambda _: None,
        )

    def checkpointed(self, floor: int) -> None:
        """A checkpoint is whole, and a run that goes on asks for groups from number `floor` on alone: what a curriculum
        keeps is shortened to them."""
        if self._curriculum is not None and self.mixture is not None and not self._curriculum.empty:
            self._curriculum.fold(self.mixture.fold(floor))

    async def batch(self, step: int, groups: int | None = None, episodes: int | None = None) -> list[Group]:
        """One batch and no more: the groups of one training step. Cancelling it cancels every episode."""
        size = (groups or self._config.groups) + self._config.redundancy.groups
        async with self.stream(groups=groups, episodes=episodes, start=Position(step * size), batches=1) as stream:
            return await stream.take()

    async def evaluate(self, held_out: Sequence[int | HeldOut], temperature: float) -> list[Episode]:
        """One valid episode for each held-out situation, in their order; a number is a seed of the only task. One that
        always breaks is left out. Raises as `batch` does, and where all are left out."""
        guards = Guards(self._config, self.configs, len(held_out), window=False)
        sampling = self._sampling(temperature, 1.0)
        first = self.configs[0].label
        places = [HeldOut(first, each) if isinstance(each, int) else each for each in held_out]
        states = [GroupState(number, at.task, at.seed, 1, level=at.level) for number, at in enumerate(places)]
        found: list[Group | None] = []
        async with Owned() as owned:
            for state in states:
                owned.start(self._group(state, "eval", sampling, guards))
            while len(found) < len(states):
                found += await owned.next()
        done = sorted((group for group in found if group is not None), key=lambda group: group.id)
        if not done and states:
            guards.of(places[0].task).stop()
        return [group.episodes[0] for group in done]

    async def chat(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatReply:
        """The relay's handler: one model call of an agent, for the episode that its token names."""
        return await self._dialogue(request).chat(request, on_delta)

    def count(self, request: ChatRequest) -> int:
        """Tokens that the prompt of this request would have, for the episode that its token names."""
        return self._dialogue(request).count(request)

    def _over(self, over: Over) -> None:
        if (dialogue := self._dialogues.get(over.token)) is not None:
            dialogue.spent(over.message)

    def _dialogue(self, request: ChatRequest) -> Dialogue:
        dialogue = self._dialogues.get(request.token)
        if dialogue is None:
            raise ModelServiceError(
                "this call belongs to an episode that has ended",
                status=410,
                type="invalid_request_error",
                code="episode_ended",
                param=None,
            )
        return dialogue

    def _sampling(self, temperature: float, top_p: float) -> Sampling:
        if not self._context_length:
            raise UsageError("a Rollout runs between start and close: use `async with`")
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            max_tokens=self._config.max_tokens,
            max_turns=0,  # the task's own, in _episode
            context_length=self._context_length,
            anew=self._config.on_update == "restart",
        )

    async def _group(
        self,
        state: GroupState,
        split: Split,
        sampling: Sampling,
        guards: Guards,
        mixture: Mixture | None = None,
        ended: Callable[[Episode], None] = lambda _: None,
    ) -> Group | None:
        """Runs one group to its end; whatever of it still runs then is cancelled. None where it is given up: its
        situation always breaks, or its task does and there are others. ended: told of each episode that ended by
        itself, before it counts."""
        attempts: dict[int, Attempt | TeamAttempt] = {}
        guard = guards.of(state.task)

        async def run(start: Start) -> Episode:
            async with self._slots:
                return await self._episode(state, start, split, sampling, attempts)

        async with Owned() as owned:
            try:
                for start in state.begin():
                    owned.start(run(start))
                while not (state.complete or state.hopeless or guard.broken):
                    for episode in await owned.next():
                        attempts.pop(episode.index)
                        ended(episode)
                        guard.ended(episode)
                        if again := state.end(episode):
                            owned.start(run(again))
            except (EnvError, AgentError) as error:
                # One task that cannot be run does not stop the others.
                if not guards.bench(state.task, error, mixture):
                    raise
            finally:
                try:
                    for episode in await owned.cancel():
                        state.end(episode)
                finally:  # also where the group itself is cancelled meanwhile
                    for index in state.running:
                        attempt = attempts.get(index)
                        state.cancelled(index, attempt.spent_tokens if attempt else 0)
        return state.result() if state.complete else None

    async def _episode(
        self,
        state: GroupState,
        start: Start,
        split: Split,
        sampling: Sampling,
        attempts: dict[int, Attempt | TeamAttempt],
    ) -> Episode:
        self._serial += 1
        id = f"{split}-{state.id}-{start.index}-{start.attempt}-{self._serial}"
        # Evaluations share their draws, whatever the step: two of them differ by the weights alone.
        names = (split, state.id if split == "train" else 0, state.task, state.seed, start.index, start.attempt)
        task = self.tasks[Arm(state.task, state.level)]

        def talk(token: str, *whose: str) -> Dialogue:
            def answered(tokens: int) -> None:
                turn = dialogue.transcript.turns[-1]
                said = turn.text or (turn.calls[0].arguments if turn.calls else "")
                self.events(Event("turn", split, self._running, tokens, id=id, said=said))

            limits = replace(sampling, max_turns=task.config.max_turns)
            seed = derive(self._seed, *names, *whose)
            dialogue = Dialogue(token, self._tokenizer, self._engine, limits, seed, answered, self._journal)
            return dialogue

        place = Place(id=id, seed=state.seed, split=split, group=state.id, index=start.index, level=state.level)
        timed = self._config.episode_timeout > 0
        cap = self._config.episode_timeout if timed else math.inf
        stall = self._config.stall_timeout if timed else math.inf
        boxes = self._boxes.get(state.task, {})

        def placed(at: Placed) -> None:
            self.events(Event("placed", split, self._running, placed=at))

        if isinstance(task, TeamTask):
            talks = {name: talk(f"{id}.{name}", name) for name in task.agents}
            attempt = TeamAttempt(place, task, talks, boxes, self._address, placed, cap=cap, stall=stall)
        else:
            talks = {"": talk(id)}
            attempt = Attempt(place, task, talks[""], boxes.get(MAIN), self._address, placed, cap=cap, stall=stall)
        attempts[start.index] = attempt
        self._dialogues |= {dialogue.id: dialogue for dialogue in talks.values()}
        self._running += 1
        self.events(Event("started", split, self._running, id=id, task=state.task))
        episode = None
        try:
            episode = await attempt.run()
            return episode
        finally:
            self._running -= 1
            for dialogue in talks.values():
                del self._dialogues[dialogue.id]
                if self._relay:
                    self._relay.forget(dialogue.id)
            episode = episode or attempt.cancelled()
            self.events(Event("finished", split, self._running, episode.sampled, episode))
