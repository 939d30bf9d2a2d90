"""What a rollout makes: tokens as they were sampled, one outcome an episode, and groups to compare.

In: nothing. Out: frozen msgspec Structs, as they travel to the trainer, the journal and the display.
Leaves how they come about to transcript.py, episode.py and group.py.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Outcome = Literal["ok", "truncated", "env_error", "infra_error", "timeout", "cancelled"]
"""How an episode ended. Only `ok` and `truncated` carry a reward; an agent cut at its own time limit is `truncated`."""

Cause = Literal["policy", "agent", "env", "infra"]
"""Whose doing an outcome is (rollout/verdict.py has the table). What the `policy` did is scored; `env` and `infra` are
replaced, and so is an `agent` that ended before it asked the model anything: the policy had no part in it. An `agent`
that broke later is scored with what it left."""

CAUSES: tuple[Cause, ...] = ("policy", "agent", "env", "infra")

PASS = 1.0
"""An episode passes when its reward is at least this."""

OUTCOMES: tuple[Outcome, ...] = ("ok", "truncated", "env_error", "infra_error", "timeout", "cancelled")


class SampledTurn(Struct, frozen=True):
    """One answer of the model inside a branch."""

    number: int
    """Its place among the episode's answers, the same in every branch that holds it."""
    start: int
    end: int
    """ids[start:end] were sampled."""
    state: str
    """A digest of the message it answers: equal messages, equal states (GiGPO's anchors)."""


class Sample(Struct, frozen=True):
    """One branch of an episode's conversation: [T] tokens. The four lists have equal lengths."""

    ids: list[int]
    mask: list[bool]
    """True exactly on the tokens that the engine sampled in this branch, its stop tokens included."""
    logprobs: list[float]
    """Of the sampled token under the distribution it was sampled from; 0.0 where mask is False."""
    versions: list[int]
    """The weight version that sampled the token; -1 where mask is False."""
    turns: list[SampledTurn] = []
    """In order; those shared with another branch are in both, also where only the other one trains them."""
    agent: str = ""
    """Whose conversation it is, where several agents worked; the numbers of its turns are that agent's own."""

    @property
    def sampled(self) -> int:
        """Number of tokens the engine sampled in this branch."""
        return sum(self.mask)


class TurnRecord(Struct, frozen=True, omit_defaults=True):
    """One model call that was answered, wholly or not: what was asked, what was done."""

    prompt_tokens: int
    sampled: int
    cached: int = 0
    """Of the prompt, the tokens that stood in the turn it goes on from; 0: it begins a branch."""
    finish_reason: str = "stop"
    stop: str | None = None
    """The stop string that ended it."""
    tool_calls: int = 0
    asked: dict[str, Any] = {}
    """What the client asked for of temperature, top_p, seed, max_tokens, tool_choice."""
    used: dict[str, Any] = {}
    """What was used instead, where that differs."""
    incomplete: str | None = None
    """Why nothing of it, nor of what goes on from it, is trained."""
    thrown: int = 0
    """Tokens that were sampled for it and thrown away, since it began anew with new weights."""
    agent: str = ""
    """Who asked, where several agents worked."""


class AgentRecord(Struct, frozen=True):
    """What became of one agent of several."""

    name: str
    happened: str
    """A row of rollout/verdict.py; `stopped`: the episode was over before it; `not_begun`: and it had not begun."""
    reward: float | None
    """Its share; None exactly where the episode is not scored."""
    turns: int = 0
    """Its model calls that were answered."""
    sandbox: str = ""
    """The id of the box that it worked in."""
    detail: str = ""
    """One sentence on why, where it did not come to its end in order."""
    log: str = ""
    """The end of what it printed, and of its log files."""
    spent_s: dict[str, float] = {}
    """Seconds that it had itself (agent), and that it waited for the model (engine)."""


class Episode(Struct, frozen=True):
    """One attempt at one task and seed, from its start to its one outcome."""

    id: str
    task: str
    seed: int
    group: int
    index: int
    """Its place in the group, 0 … n+k-1; a replacement keeps the place of the episode it replaces."""
    outcome: Outcome
    cause: Cause | None
    """None where it came to its end in order, and for `cancelled`."""
    reward: float | None
    """None exactly where the episode is not scored."""
    samples: list[Sample]
    turns: int
    """Model calls that were answered."""
    duration_s: float
    detail: str = ""
    """One sentence on why, where the outcome is not `ok`."""
    turn_rewards: list[float] = []
    """What the environment gave for each answer, by its number; empty where there is only the reward at the end."""
    record: list[TurnRecord] = []
    """Its model calls, in the order in which they ended."""
    happened: str = ""
    """What happened to it, in a word: a row of rollout/verdict.py."""
    log: str = ""
    """The end of what the agent printed, and of the log files that its recipe names."""
    spent_s: dict[str, float] = {}
    """Seconds by who held it: pool, ours, env, agent, engine."""
    level: int = 0
    """Which of the task's levels."""
    began_at: float = 0.0
    """When it began, in seconds since 1970: the run's logs speak of it between then and `duration_s` later."""
    sandbox: str = ""
    """The id of the box that it had; empty where it had none. Another episode has it now, or nobody."""
    node: str = ""
    """The host of that box."""
    agents: list[AgentRecord] = []
    """Where several agents worked: what became of each. `reward` is the mean of theirs then."""

    def earned_by(self, agent: str) -> float | None:
        """The reward of that agent's calls; of the episode where there is one agent alone."""
        return next((each.reward for each in self.agents if each.name == agent), self.reward)

    @property
    def valid(self) -> bool:
        """It has a reward that the policy earned: it may enter advantages and pass rates."""
        return self.reward is not None

    @property
    def sampled(self) -> int:
        """Number of tokens the engine sampled in all branches."""
        return sum(sample.sampled for sample in self.samples)

    @property
    def thrown(self) -> int:
        """Number of tokens that were sampled and are in no branch, since their call began anew."""
        return sum(turn.thrown for turn in self.record)

    @property
    def incomplete(self) -> list[str]:
        """Why turns were incomplete, one entry a turn."""
        return [turn.incomplete for turn in self.record if turn.incomplete]


class Group(Struct, frozen=True):
    """The valid episodes of one task and seed: what GRPO compares with one another."""

    id: int
    task: str
    seed: int
    episodes: list[Episode]
    """Exactly as many as were asked for, all valid, in the order of their index."""
    wasted_tokens: int
    """Sampled tokens of episodes that were started for this group and are not in it, and what calls of those in it
    threw away."""
    discarded: dict[str, int] = {}
    """Episodes that were started for this group and are not in it, by outcome."""
    incomplete: dict[str, int] = {}
    """Incomplete turns of all episodes that were started for this group, by reason."""
    level: int = 0
    """Which of the task's levels."""

    @property
    def pass_rate(self) -> float:
        """Share of its episodes that passed."""
        return sum((episode.reward or 0.0) >= PASS for episode in self.episodes) / len(self.episodes)


class Placed(Struct, frozen=True):
    """An episode that works in a sandbox now, until it is finished."""

    id: str
    task: str
    sandbox: str
    node: str
    began_at: float


class Event(Struct, frozen=True):
    """One thing the display may show: an episode began, got its sandbox, was answered a turn, or ended."""

    kind: Literal["started", "placed", "turn", "finished"]
    split: Literal["train", "eval"]
    running: int
    """Episodes in flight after this event."""
    tokens: int = 0
    """Tokens sampled by this turn, or by the episode that finished."""
    episode: Episode | None = None
    """The episode, where kind is `finished`."""
    placed: Placed | None = None
    """Where kind is `placed`."""
    id: str = ""
    """The episode, where kind is `started` or `turn`."""
    task: str = ""
    """Of what, where kind is `started`."""
    said: str = ""
    """The answer, where kind is `turn`: its text, or else the arguments of its first call."""
