"""The two kinds of task, resolved: what a recipe's `task` and `agent` sections mean.

In: a TaskConfig, and an AgentConfig or None. Out: a Task that says which kind it is and makes what an episode needs.
Leaves playing it to episode.py. A `Game` is one Env under rockroll's loop: its text, numbers and failures checked.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, cast

from rockroll.agent.command import CommandAgent
from rockroll.agent.config import AgentConfig
from rockroll.agent.team import TeamConfig
from rockroll.env.apart import ApartEnv, Workers
from rockroll.env.api import Action, SandboxTask, Split, Tokens, called, read_reset, read_step, read_tools
from rockroll.env.boxed import BoxedEnv
from rockroll.env.registry import BUILT_IN, find, make
from rockroll.env.source import Source, source
from rockroll.errors import EnvError, UsageError
from rockroll.model_service.wire import Tool
from rockroll.rollout.config import TaskConfig
from rockroll.rollout.domain import DomainConfig, at_level
from rockroll.rollout.mixture import Arm
from rockroll.rollout.transcript import Turn
from rockroll.rollout.wishes import Wishes
from rockroll.sandbox.client import Sandbox

Policy = Literal["expert", "random"]
OWN: dict[Policy, str] = {"expert": "expert_action", "random": "sample_random_action"}
"""Policies that an Env may bring itself, and the methods that they are."""

SEED_BITS = 30
"""A task's seed fits in 31 bits with the split's, since numpy's generators take no more than 32."""


@dataclass(frozen=True)
class EnvTask:
    """An Env, stepped by rockroll's own loop; every episode has an object of its own.

    threads: where the steps of slow ones run; asyncio's own pool, which has a few threads a core, where None.
    """

    config: TaskConfig
    takes_split: bool
    threads: Executor | None = None
    workers: Workers | None = None
    """Where those are played that have a process of their own."""
    source: Source | None = None
    """The files of one that is played in a sandbox."""

    @property
    def name(self) -> str:
        return self.config.label

    def boxed(self, sandbox: Sandbox, split: Split) -> BoxedEnv:
        """The Env of one episode, of a task with a `source`; its owner closes it."""
        assert self.source is not None
        return BoxedEnv(sandbox, self.source, self.config.options, split=split, limit=self.config.call_timeout)

    def game(self, split: Split) -> Game:
        """A new game, of a task without a `source`. Raises EnvError or UsageError where it cannot be made."""
        if self.source is not None:
            raise UsageError(f"{self.config.env}: its own policies are played here: leave out where: sandbox for that")
        options = {**self.config.options, "split": split} if self.takes_split else self.config.options
        if self.workers is not None:
            return Game(ApartEnv(self.workers, self.config.env, options, self.config.call_timeout), slow=False)
        return Game(make(self.config.env, **options), self.config.slow, self.threads)


@dataclass(frozen=True)
class AgentTask:
    """A SandboxTask and the agent that works on it."""

    config: TaskConfig
    task: SandboxTask
    agent: CommandAgent

    @property
    def name(self) -> str:
        return self.config.label


@dataclass(frozen=True)
class TeamTask:
    """A SandboxTask and the agents that work on it together."""

    config: TaskConfig
    task: SandboxTask
    team: TeamConfig
    agents: Mapping[str, CommandAgent]

    @property
    def name(self) -> str:
        return self.config.label


Task = EnvTask | AgentTask | TeamTask


def works_in_sandbox(env: str) -> bool:
    """Whether that task is one for an agent in a sandbox. Raises UsageError for one that is unknown, or of neither
    kind."""
    cls = find(env)
    played = all(callable(getattr(cls, name, None)) for name in ("reset", "step"))
    worked_on = all(callable(getattr(cls, name, None)) for name in ("situation", "grade"))
    if played == worked_on:
        raise UsageError(
            f"a task has either reset and step (an Env) or situation and grade (a SandboxTask); {env} has "
            f"{'both' if played else 'neither'}"
        )
    return worked_on


def takes_boxes(task: TaskConfig) -> bool:
    """Whether its episodes have a sandbox each, worked in by an agent or played in. Raises as `works_in_sandbox`."""
    return task.where == "sandbox" or works_in_sandbox(task.env)


def brings_boxes(env: str) -> bool:
    """Whether each situation of that task names a box of its own, so that none is kept warm. Raises as
    `works_in_sandbox`."""
    return works_in_sandbox(env) and bool(getattr(find(env), "own_boxes", False))


Crew = AgentConfig | TeamConfig
"""Who works on a task in a sandbox: one agent, or several."""


def resolve_all(configs: Sequence[TaskConfig], agent: Crew | None) -> dict[Arm, Task]:
    """Every task at every of its levels. agent: works on those that need one and have none of their own.

    Raises UsageError as `resolve` does, and for an agent that no task needs.
    """
    found: dict[Arm, Task] = {}
    for config in configs:
        own = config.crew if isinstance(config, DomainConfig) else None
        shared = (
            agent
            if len(configs) == 1 or (own is None and config.where != "sandbox" and works_in_sandbox(config.env))
            else None
        )
        for level in range(max(1, len(config.levels))):
            found[Arm(config.label, level)] = resolve(at_level(config, level), own or shared)
    if agent is not None and not any(isinstance(task, AgentTask | TeamTask) for task in found.values()):
        raise UsageError(f"no task of this recipe is worked on in a sandbox: leave out the section `{_section(agent)}`")
    return found


def _section(crew: Crew) -> str:
    return "team" if isinstance(crew, TeamConfig) else "agent"


def resolve(config: TaskConfig, agent: Crew | None) -> Task:
    """The task of a recipe. Raises UsageError for one that is unknown, of neither kind, or without its agent."""
    if config.where == "sandbox" and not (config.env in BUILT_IN and works_in_sandbox(config.env)):
        # Not imported: what it needs is in the box's image, and need not be here.
        if agent is not None:
            raise UsageError(
                f"{config.env} is an Env (where: sandbox) and has no agent: leave out the section `{_section(agent)}`"
            )
        return EnvTask(config, takes_split=True, source=source(config.env))
    if not works_in_sandbox(config.env):
        cls = find(config.env)
        if agent is not None:
            raise UsageError(
                f"{config.env} has reset and step and is played by rockroll's own loop: leave out the section "
                f"`{_section(agent)}`"
            )
        takes_split = not inspect.isfunction(cls) and "split" in inspect.signature(cls).parameters
        if config.where == "here":
            make(config.env, **config.options)  # wrong options are found before anything is started
        return EnvTask(config, takes_split and "split" not in config.options)
    if config.where != "here":
        raise UsageError(
            f"{config.env} is worked on in a sandbox: leave out where: {config.where}, which is for an Env"
        )
    if agent is None:
        raise UsageError(
            f"{config.env} is worked on by an agent in a sandbox: name it, as in agent: {{command: python3 /a.py}}"
        )
    task = cast(SandboxTask, make(config.env, **config.options))
    if isinstance(agent, TeamConfig):
        return TeamTask(config, task, agent, {name: CommandAgent(each) for name, each in agent.agents.items()})
    return AgentTask(config, task, CommandAgent(agent))


class Game:
    """One episode of an Env: EnvError for whatever it raises, or returns against its contract."""

    def __init__(self, env: Any, slow: bool, threads: Executor | None = None) -> None:
        self._env = env
        self.wishes = Wishes()
        """What every call to the model of this episode asks for."""
        self.vocabulary = 1 << 31
        """Ids below it are the model's: an observation may be of such."""
        self._slow, self._threads = slow, threads
        self._thread: asyncio.Future[Any] | None = None

    async def reset(self, seed: int, split: Split) -> list[dict[str, Any]]:
        """The first messages; `wishes` then has the tools. Seeds of the splits are never equal: train's are even,
        eval's odd."""
        begun = await self._call(self._env.reset, seed=2 * seed + (split == "eval"))
        observation, info = read_reset(begun)
        first = [{"role": "user", "content": self._known(observation)}]
        self.wishes = Wishes(tools=[Tool(**each) for each in read_tools(info)])
        system = info.get("system")
        return [{"role": "system", "content": system}, *first] if system else first

    async def step(self, turn: Turn) -> tuple[list[dict[str, Any]], float, bool, bool]:
        """(the messages that answer the model's, reward, terminated, truncated); an Env with one `done` ends as
        terminated. Each tool call of the answer is a step; after the one that ends the episode there is none."""
        if not turn.calls:
            return await self.say(turn.text)
        messages: list[dict[str, Any]] = []
        total, step = 0.0, None
        for call in turn.calls:
            action = Action.of(turn.text if not messages else "", (call.name, call.arguments))
            step = read_step(await self._call(self._env.step, action))
            total += step.reward
            said = self._known(step.observation)
            messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": said})
            if step.over:
                break
        assert step is not None
        return messages, total, step.terminated, step.truncated

    async def say(self, text: str) -> tuple[list[dict[str, Any]], float, bool, bool]:
        """`step` for an answer that calls no tool."""
        step = read_step(await self._call(self._env.step, Action(text)))
        shown = self._known(step.observation)
        return [{"role": "user", "content": shown}], step.reward, step.terminated, step.truncated

    def own_answer(self, by: Policy) -> str | None:
        """What the Env itself would answer now; None where its solver knows nothing. Raises UsageError where the Env
        has no such policy."""
        name = OWN[by]
        policy: Any = getattr(self._env, name, None)
        if not callable(policy):
            raise UsageError(
                f"{type(self._env).__name__} has no {name}(), which plays as {by}: give it one (docs/tasks.md), "
                "or take one that `rockroll env scores` names"
            )
        try:
            answer = cast("str | None", policy())
        except Exception as error:
            raise EnvError(f"{type(self._env).__name__}.{name} raised {type(error).__name__}: {error}") from error
        if answer is not None and called(answer) is not None:
            raise UsageError(
                f"{type(self._env).__name__}'s {name}() calls a tool, and its own policies are played in words; of "
                "rockroll:arithmetic the option is tools: text"
            )
        return answer

    def close(self) -> None:
        """Let the Env go, also while a slow step of it is under way."""
        if not callable(shut := getattr(self._env, "close", None)):
            return
        if self._thread is not None and not self._thread.done():
            self._thread.add_done_callback(lambda _: shut())
        else:
            shut()

    def _known(self, observation: str) -> str:
        if isinstance(observation, Tokens) and (odd := [i for i in observation.ids if not 0 <= i < self.vocabulary]):
            raise EnvError(
                f"an observation's token ids are from 0 to {self.vocabulary - 1}, the model's; got {odd[0]}: was it "
                "made with another model's tokenizer?"
            )
        return observation

    async def _call(self, work: Callable[..., Any], *args: Any, **named: Any) -> Any:
        try:
            if not self._slow:
                result = work(*args, **named)
                return await result if inspect.isawaitable(result) else result
            # Shielded: a thread cannot be cancelled, and the Env must not be closed under its feet.
            call = functools.partial(work, *args, **named)
            self._thread = asyncio.get_running_loop().run_in_executor(self._threads, call)
            return await asyncio.shield(self._thread)
        except EnvError:
            raise
        except Exception as error:
            name = f"{type(self._env).__name__}.{getattr(work, '__name__', 'call')}"
            raise EnvError(f"{name} raised {type(error).__name__}: {error}") from error
