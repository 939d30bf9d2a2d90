"""The two ways to write a task.

In: a seed. Out: either an `Env`, stepped by rockroll's own loop (GEM's and Gymnasium's reset and step), or a
`SandboxTask`, whose situation is put into a sandbox where an agent program works on it. Leaves the model, tokens
and training to others: a task never sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

Split = Literal["train", "eval"]


@runtime_checkable
class Env(Protocol):
    """One task as a game of text: GEM's interface, which is Gymnasium's with strings.

    Either method may be `async def`: then others run while it waits. An `info` of `reset` may carry `"system"`: a
    system message for the conversation. `close()` is called where there is one. An environment whose constructor takes
    a keyword `split` is told "train" or "eval".
    """

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode: (observation, info). The same seed gives the same episode."""
        ...

    def step(self, action: str) -> tuple[Any, ...]:
        """Take the policy's text: (observation, reward, terminated, truncated, info), or with one `done` for two."""
        ...


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
    secret: Any = None
    """What `grade` needs and the agent must not see: it never enters the sandbox."""

    def path(self, name: str) -> str:
        """The absolute path in the sandbox of a key of `files`."""
        return name if name.startswith("/") else f"{self.cwd.rstrip('/')}/{name}"


@runtime_checkable
class SandboxTask(Protocol):
    """A task whose work is done in a sandbox by an agent program (`agent: {command: …}` in a recipe)."""

    def situation(self, seed: int, split: Split) -> Situation:
        """The situation of that seed. Pure: equal arguments, equal situations. The splits share none."""
        ...

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        """The reward, by looking at the sandbox through its files and `execute`; every agent process is dead by now.

        What the agent left behind is the policy's doing and earns a low reward: a FileError, for a file that is not
        there, counts as 0.0. Any other exception means that the task itself failed, and the episode is replaced.
        """
        ...
