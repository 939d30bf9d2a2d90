"""What is to be learnt, and how episodes of it are collected.

In: the recipe's `task` and `rollout` sections. Out: checked, frozen values. Leaves the agent program to agent/config.py
and evaluation to the controller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from rockroll.units import size


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task, of either kind."""

    env: str
    """`rockroll:shell`, `rockroll:sokoban`, a library's as `gymnasium:CartPole-v1`, or `module:Class` of your own
    (docs/tasks.md)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor."""
    levels: tuple[dict[str, Any], ...] = ()
    """How hard it may be: options of each level, laid over `options`. Drawn equally often, or as `rollout.curriculum`
    says; none: one level."""
    max_turns: int = 16
    """Model calls an episode may make; then it is `truncated`, and scored as it stands."""
    failure_reward: float = 0.0
    """Of an episode in which the policy ruined its own sandbox or agent, or used up its time (docs/training.md)."""
    slow: bool = False
    """An environment whose `reset` or `step` takes more than a few milliseconds is stepped in a thread of its own."""
    where: Literal["here", "process", "sandbox"] = "here"
    """process: an environment is played in a worker process, which is killed and replaced where it hangs or crashes.
    sandbox: inside a sandbox of its own for each episode, by the Python of the box's image (docs/tasks.md)."""
    call_timeout: float = 60.0
    """Seconds that one `reset` or `step` may take there; then it hangs, and the episode is an `env_error`."""

    def __post_init__(self) -> None:
        if not self.env:
            raise ValueError("task env is rockroll:NAME or module:Class; got an empty one")
        if len(self.levels) == 1:
            raise ValueError("task levels are two or more to choose from; put the options of a single one into options")
        if self.max_turns < 1:
            raise ValueError(f"task max_turns is at least 1; got {self.max_turns}")
        if not 0 < self.call_timeout < math.inf:
            raise ValueError(f"task call_timeout is a number of seconds above 0; got {self.call_timeout}")
        if not math.isfinite(self.failure_reward):
            raise ValueError(f"task failure_reward is a finite number; got {self.failure_reward}")

    @property
    def label(self) -> str:
        """What episodes and metrics call it."""
        return self.env


@dataclass(frozen=True, kw_only=True)
class RedundancyConfig:
    """What is started beyond need, so that stragglers need not be waited for; the last ones are cancelled."""

    episodes: int = 0
    """Further episodes of each group."""
    groups: int = 0
    """Further groups of each batch."""

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.groups < 0:
            raise ValueError(f"redundancy is at least 0; got episodes {self.episodes} and groups {self.groups}")


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Which levels, or tasks, are drawn more often than their share: those that are neither mastered nor hopeless."""

    window: tuple[float, float] = (0.2, 0.8)
    """Pass rates, from … to, both included, at which there is most to learn. One that was never measured is inside."""
    boost: float = 4.0
    """How many times as often what is inside the window is drawn as what is outside: nothing is ever left out, or it
    would not be known when it falls into the window."""
    among: Literal["levels", "tasks"] = "levels"
    """levels: each task keeps its share, its levels compete. tasks: every level of every task competes with all."""
    memory: int = 8
    """A rate is the mean of about so many groups, the latest ones most (exponentially)."""

    def __post_init__(self) -> None:
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise ValueError(f"curriculum window is two pass rates, 0 <= low < high <= 1; got {list(self.window)}")
        if not 1 <= self.boost < math.inf:
            raise ValueError(f"curriculum boost is 1 (no curriculum) or more; got {self.boost}")
        if self.memory < 1:
            raise ValueError(f"curriculum memory is at least 1 group; got {self.memory}")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How the episodes of one training step are collected."""

    groups: int = 16
    """Tasks of one step."""
    episodes: int = 8
    """Episodes of each task: what GRPO compares with one another."""
    max_staleness: int = 0
    """How many versions older than the trainer's the weights may be that a trained token was sampled with. 0: sampling
    and training take turns; 1 or more: they overlap."""
    on_stale: Literal["wait", "drop"] = "wait"
    """What becomes of a group that must be trained now or never: the batch waits for it, or it is cancelled."""
    on_update: Literal["survive", "restart"] = "survive"
    """What becomes of a model call that is under way when new weights arrive. survive: it goes on with them, each token
    saying which weights sampled it. restart: it begins anew with them, so that every answer has one version; what it
    had is in tokens/wasted, and an agent that streams hears of an answer when it is whole."""
    keep: Literal["all", "varied", "window"] = "all"
    """varied: groups whose episodes all earned the same teach nothing; others are sampled in their place. window: so
    are groups whose pass rate is outside `window`."""
    window: tuple[float, float] = (0.1, 0.9)
    """Pass rates of a group, from … to, both included, that `keep: window` keeps."""
    curriculum: CurriculumConfig | None = None
    """Draw levels, or tasks, more often while their pass rate is in a window; left out: by their shares alone."""
    redundancy: RedundancyConfig = field(default_factory=RedundancyConfig)
    """Episodes and groups started beyond need."""
    temperature: float = 1.0
    """Of every training sample; an agent's own wish is overruled, since the trainer must know the distribution."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this much probability; 1.0 is all."""
    max_tokens: int = 256
    """Tokens of one answer, at most; an agent may ask for fewer."""
    concurrency: int = 32
    """Episodes at once; where they work in sandboxes, also the number of warm ones."""
    episode_timeout: float = 300.0
    """Seconds of one episode on the wall's clock, waiting for a sandbox apart. Beyond it the episode is ended, and
    whoever held it for most of them is at fault: the agent is scored, engine and environment are replaced.
    0: no limit, of `stall_timeout` neither."""
    stall_timeout: float = 180.0
    """Seconds in which nothing happens: no call to the model, no answer, no step. Who holds the episode is at fault."""
    replacements: float = 0.5
    """What env, agent or infrastructure may spoil before the run stops, as a share of the batch (8 episodes anyway)."""
    failure_rate: float = 0.9
    """Share of a task's last episodes (a batch of them, 16 anyway) that env, infrastructure or an agent that broke may
    ruin before the run stops. 1: it never does; for an agent whose exit code says nothing."""
    incomplete: float = 0.1
    """Share of a batch's model calls that may be incomplete (8 calls anyway) before the run stops: those whose client
    left in the middle of an answer, say. Nothing of them is trained (docs/transcripts.md)."""
    journal: Literal["off", "write", "fsync"] = "write"
    """Every answered turn goes into RUN_DIR/journal before its agent has its end. write: it survives the death of all
    processes; fsync: also loss of power, for the price of a disk's flush a turn."""
    journal_keep: str = "8g"
    """How much of RUN_DIR/journal stays: a size, of which the oldest turns go first; `all`; or `none`: what a run wrote
    goes when it has ended well. Nothing is read from there by a run: it is for whoever wants to know what was said."""
    tool_calls: Literal["auto", "hermes", "xml", "llama", "mistral", "none"] = "auto"
    """How the model writes tool calls; `auto` is what its chat template shows."""
    reasoning: Literal["auto", "think", "none"] = "auto"
    """Whether what it says between <think> and </think> is its reasoning; `auto` is what its chat template shows."""
    template: dict[str, Any] = field(default_factory=dict)
    """Further variables of the chat template, such as `{enable_thinking: false}`."""

    def __post_init__(self) -> None:
        for name, least in (
            ("groups", 1),
            ("episodes", 1),
            ("max_tokens", 1),
            ("concurrency", 1),
            ("replacements", 0),
            ("max_staleness", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"rollout {name} is at least {least}; got {getattr(self, name)}")
        if self.on_update == "restart" and not self.max_staleness:
            raise ValueError(
                "rollout on_update: restart is for sampling ahead: with max_staleness 0 no call is under way when new "
                "weights arrive; set max_staleness to 1 or more, or leave on_update out"
            )
        low, high = self.window
        if not 0 <= low < high <= 1:
            raise ValueError(f"rollout window is two pass rates, 0 <= low < high <= 1; got {list(self.window)}")
        if not 0 < self.failure_rate <= 1:
            raise ValueError(f"rollout failure_rate is a share above 0 and at most 1; got {self.failure_rate}")
        self.journal_most()
        if not 0 <= self.incomplete <= 1:
            raise ValueError(f"rollout incomplete is a share, 0 to 1; got {self.incomplete}")
        if self.temperature <= 0:
            raise ValueError(f"rollout temperature is above 0 (evaluation alone may be greedy); got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"rollout top_p is above 0 and at most 1; got {self.top_p}")
        if self.episode_timeout < 0:
            raise ValueError(
                f"rollout episode_timeout is a number of seconds, or 0 for none; got {self.episode_timeout}"
            )
        if self.stall_timeout <= 0:
            raise ValueError(f"rollout stall_timeout is a number of seconds above 0; got {self.stall_timeout}")

    def journal_most(self) -> int | None:
        """Bytes of `journal_keep`, as a Journal takes them."""
        if self.journal_keep in ("all", "none"):
            return None if self.journal_keep == "all" else 0
        try:
            most = size(self.journal_keep)
        except ValueError:
            most = 0
        if most < 2**20:
            raise ValueError(f"rollout journal_keep is all, none, or a size from 1m on; got {self.journal_keep!r}")
        return most
