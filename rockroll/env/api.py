"""The two ways to write a task.

In: a seed. Out: either an `Env`, stepped by rockroll's own loop (GEM's and Gymnasium's reset and step), or a
`SandboxTask`, whose situation is put into a sandbox where an agent program works on it. Leaves the model, tokens
and training to others: a task never sees them. `rockroll env check NAME` tries out what is promised here.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rockroll.errors import EnvError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

Split = Literal["train", "eval"]


@runtime_checkable
class Env(Protocol):
    """One task as a game of text: GEM's interface, which is Gymnasium's with strings.

        observation, info = env.reset(seed=7)
        while True:
            action = …                                              # the model's answer, any text at all
            observation, reward, terminated, truncated, info = env.step(action)
            if terminated or truncated:                             # no step follows; reset begins another episode
                break

    What rockroll relies on, and `rockroll env check NAME` tries out:
      - observations are text (or tokens, below); a reward is a finite number, and the episode's is their sum;
      - the seed decides everything that is drawn: the episodes of a group share it and are compared. Draw from a
        `random.Random(seed)` of your own: the module's own state is shared by all episodes that run at once;
      - every text is an action. One that cannot be read is the model's mistake, to be answered, never an exception;
      - an episode ends: by `terminated` (it is over), by `truncated` (your own limit of steps), or else by the recipe's
        `max_turns`. Its reward is what was earned until then. Time is limited by `rollout.episode_timeout`.
    What it may do beside:
      - either method may be `async def`: then others run while it waits;
      - `step` may return four values, with one `done` in place of terminated and truncated;
      - `info["system"]` of `reset` becomes the conversation's system message;
      - an observation may be a list of token ids: the message's content is exactly these, never tokenized again;
      - `close()` is called at the end, where there is one;
      - `info["tools"]` of `reset` offers tools: [{"name", "description", "parameters": a JSON schema}]. An answer that
        calls one comes to `step` as an `Action` whose `call` is it (`called(action)`); the observation goes back as the
        tool's result. An answer with several calls is as many steps;
      - a constructor that takes `split` is told "train" or "eval", and keeps the situations of the two apart;
      - `sample_random_action()` gives a text that is an action now; the check plays with it;
      - `expert_action()` gives the text that a reference solver would answer now, None where it knows none:
        demonstrations are made with it (docs/objectives.md);
      - a class attribute `levels` has constructor options by the name of a difficulty: `rockroll env scores NAME` says
        what the solver and chance earn at each.
    """

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode: (observation, info). The same seed gives the same episode."""
        ...

    def step(self, action: str) -> tuple[Any, ...]:
        """Take the policy's text: (observation, reward, terminated, truncated, info), or with one `done` for two."""
        ...


class AsyncEnv(Protocol):
    """An Env that is waited for: `await env.reset(7)`, `await env.step(action)`, `await env.aclose()`.

    `rockroll.make_async(NAME)` makes one of any Env, played here, in a worker process (where="process") or in a sandbox
    (sandbox=…); an Env that has `async def` methods is one already, and training takes them as they are.
    """

    async def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]: ...

    async def step(self, action: str) -> tuple[Any, ...]: ...


class VecEnv(Protocol):
    """n environments of one kind, stepped together: `rockroll.make_vec(NAME, n)`; `rockroll.make_async(NAME, n)` is the
    same, waited for. Played here, or where="process" by worker processes side by side.

        observations, infos = envs.reset(seed=7)                        # lists of n; the i-th begins with seed 7 + i
        observations, rewards, terminated, truncated, infos = envs.step(actions)

    What becomes of one whose episode has ended is `autoreset`, in Gymnasium's words:
      next_step   its next `step` takes no action and begins another episode: first observation, reward 0.0, no end
      same_step   the same step begins it: observation and info are the new episode's; infos[i] has what the old one
                  ended with, as "final_obs" and "final_info"
      disabled    `reset(mask=over)` begins those anew, a mask being n flags; a step of one that is over is an EnvError
    The k-th episode that the i-th begins without being given a seed has that of its `reset` + k n: no two are equal.
    What one raises, a hang, a crash is an EnvError; then `reset` begins all of them anew.
    """

    def reset(
        self, seed: int | Sequence[int | None] | None = None, mask: Sequence[bool] | None = None
    ) -> tuple[list[str], list[dict[str, Any]]]: ...

    def step(
        self, actions: Sequence[str]
    ) -> tuple[list[str], list[float], list[bool], list[bool], list[dict[str, Any]]]: ...


@dataclass(frozen=True)
class Call:
    """A tool call of the model."""

    name: str
    arguments: dict[str, Any] | None
    """None: what the model wrote is no JSON object; `text` has it."""
    text: str


class Action(str):
    """An answer as `step` gets it: its text, and the tool call in it, if any."""

    call: Call | None = None

    @staticmethod
    def of(text: str, call: tuple[str, str] | None) -> Action:
        """call: (name, arguments as the model wrote them)."""
        action = Action(text)
        if call is not None:
            try:
                said = json.loads(call[1])
            except (ValueError, RecursionError):
                said = None
            action.call = Call(call[0], said if isinstance(said, dict) else None, call[1])
        return action


def called(action: str) -> Call | None:
    """The tool call of an answer, whatever kind of text it is."""
    return action.call if isinstance(action, Action) else None


def read_tools(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that `reset` offers, checked; also in OpenAI's form, inside {"type": "function", "function": …}."""
    tools = []
    for given in info.get("tools") or []:
        tool = given.get("function", given) if isinstance(given, dict) else given
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"]:
            raise EnvError(
                f'info["tools"] are {{"name": …, "description": …, "parameters": a JSON schema}}; got {given!r}'
            )
        schema = tool.get("parameters") or {"type": "object", "properties": {}}
        tools.append({"name": tool["name"], "description": str(tool.get("description", "")), "parameters": schema})
    return tools


class Tokens(str):
    """An observation of token ids, wherever a text is expected: a word that stands for them, the same for equal ids."""

    ids: tuple[int, ...] = ()

    @staticmethod
    def of(ids: Iterable[int]) -> Tokens:
        """TypeError for what are no whole numbers."""
        known = tuple(operator.index(each) for each in ids)
        tokens = Tokens("tokens" + hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest())
        tokens.ids = known
        return tokens


@dataclass(frozen=True)
class Step:
    """What came of one action, read from either form."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


def read_reset(value: Any) -> tuple[str, dict[str, Any]]:
    """What `reset` returned, checked. Raises EnvError with the rule that it breaks."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise EnvError(f"reset returns (observation, info); got {_shape(value)}")
    observation, info = value
    return _text(observation), info if isinstance(info, dict) else {}


def read_step(value: Any) -> Step:
    """What `step` returned, checked; with one `done`, an end is `terminated`. Raises EnvError with the rule that it
    breaks."""
    if not isinstance(value, tuple) or len(value) not in (4, 5):
        raise EnvError(
            "step returns (observation, reward, terminated, truncated, info) or (observation, reward, done, info); "
            f"got {_shape(value)}"
        )
    observation, reward, terminated = value[:3]
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise EnvError(f"a reward is a finite number; got {reward!r}")
    return Step(_text(observation), number, bool(terminated), len(value) == 5 and bool(value[3]))


def as_given(observation: str) -> str | list[int]:
    """The observation as an environment gives it."""
    return list(observation.ids) if isinstance(observation, Tokens) else observation


def _text(observation: Any) -> str:
    if isinstance(observation, str):
        return observation
    try:
        if isinstance(observation, bytes | bytearray):
            raise TypeError
        return Tokens.of(observation)
    except TypeError:
        raise EnvError(f"an observation is text, or a list of token ids; got {type(observation).__name__}") from None


def _shape(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one agent of several is given of a situation (docs/agents.md, "Several agents")."""

    instruction: str | None = None
    """Its own goal; None: the situation's."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """As in Situation, for its sandbox alone."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of this agent."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What one seed asks of an agent, and everything it needs in its sandbox."""

    instruction: str
    """The goal in words; the agent reads it in $ROCKROLL_INSTRUCTION."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Contents by path; an absolute path, or one relative to `cwd`. Written before the agent starts."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Further environment variables of the agent."""
    cwd: str = "/work"
    """The folder in which the agent starts; it is made where it is missing."""
    box: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a SandboxConfig, over the recipe's, of a box that is started for this episode alone: {"image": …}.
    Empty: one of the recipe's warm boxes."""
    timeout: float | None = None
    """Seconds that the agent has for this one, in place of the recipe's `agent.timeout`."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """By agent, where a team works on it: what each is given of its own. Agents that are left out, and one that works
    alone, have what stands above."""
    secret: Any = None
    """What `grade` needs and the agent must not see: it never enters the sandbox."""

    def path(self, name: str) -> str:
        """The absolute path in the sandbox of a key of `files`."""
        return name if name.startswith("/") else f"{self.cwd.rstrip('/')}/{name}"


@runtime_checkable
class SandboxTask(Protocol):
    """A task whose work is done in a sandbox by an agent program (`agent: {command: …}` in a recipe).

    What it may have beside: `async def prepare(self)`, called once before the first episode, for what takes time or may
    fail as a whole (images to build); `own_boxes = True`, where each of its situations names its `box`: then no box is
    kept warm for it; `async def grade_team(self, sandboxes, situation)`, in place of `grade` where several agents work:
    sandboxes by name, and a number for all of them or a mapping of agent to number back. `grade` may return a mapping,
    too.
    """

    def situation(self, seed: int, split: Split) -> Situation:
        """The situation of that seed. Pure: equal arguments, equal situations. The splits share none."""
        ...

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        """The reward, by looking at the sandbox through its files and `execute`; every agent process is dead by now.

        What the agent left behind is the policy's doing and earns a low reward: a FileError, for a file that is not
        there, counts as 0.0. Any other exception means that the task itself failed, and the episode is replaced.
        """
        ...
