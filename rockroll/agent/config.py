"""Which program is the agent.

In: the recipe's `agent` section. Out: a checked AgentConfig. Leaves starting it to command.py.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field

from rockroll.agent.presets import Preset, preset

NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
"""Of an MCP server."""


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What all model calls of one episode may use up together; a call over it gets the vendor's rate or context error,
    and the episode ends as truncated. Left out: no bound of its own."""

    calls: int | None = None
    """Answers begun; one that failed is none, nor is a client's retry."""
    concurrent: int | None = None
    """Answers under way at once; 16 of a sandbox in any case. A call beyond it may be tried again: nothing is over."""
    prompt_tokens: int | None = None
    """Of all prompts added up, what stands in several of them counted each time."""
    completion_tokens: int | None = None
    """Sampled; `max_tokens` of a call is cut to what is left."""
    body_bytes: int | None = None
    """Of all requests."""
    seconds: float | None = None
    """From the moment when the agent may call; a call that began in time may end after it."""

    def __post_init__(self) -> None:
        for name, value in self.bounds().items():
            if value <= 0:
                raise ValueError(f"agent budget {name} is above 0; got {value}; leave it out for no bound")

    def bounds(self) -> dict[str, float]:
        """Those that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Any program that runs in a sandbox and calls the model at $OPENAI_BASE_URL."""

    command: str = ""
    """A Bash command line. The goal is in $ROCKROLL_INSTRUCTION, the current folder is the task's."""
    preset: str | None = None
    """In place of `command`: reference, mini-swe-agent, codex, claude-code or qwen-code, at a pinned version
    (docs/agents.md)."""
    files: dict[str, str] = field(default_factory=dict)
    """Path in the sandbox: file here, from the current folder, or `rockroll:FILE` for one of rockroll/agent/."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment variables of the agent."""
    timeout: float = 60.0
    """Seconds of its own, without what it waits for the model; then everything it started is killed, and the episode
    is scored with the task's `failure_reward`."""
    logs: tuple[str, ...] = ()
    """Files of the box whose ends stand in the episode's record, beside what the agent printed: patterns for the shell,
    as in "~/.codex/sessions/*.jsonl". A preset knows its own."""
    mcp: dict[str, str] = field(default_factory=dict)
    """MCP servers of this host that the agent may use, by name: their http(s) URLs. In the box they are at
    $ROCKROLL_MCP_NAME, and all of them as JSON in $ROCKROLL_MCP; the box still has no network."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """What its model calls may use up; beside it `task.max_turns` and `rollout.max_tokens` hold."""

    def __post_init__(self) -> None:
        if self.preset is not None:
            if self.command:
                raise ValueError(
                    f"an agent is a preset or a command of its own; got {self.preset} and {self.command!r}"
                )
            preset(self.preset)
        elif not self.command.strip():
            raise ValueError("agent command is a Bash command line; got an empty one")
        if self.timeout <= 0:
            raise ValueError(f"agent timeout is a number of seconds above 0; got {self.timeout}")
        for name, url in self.mcp.items():
            if not NAME.fullmatch(name) or not url.startswith(("http://", "https://")):
                raise ValueError(
                    f"agent mcp is NAME: http://…, a name of small letters, digits, - and _; got {name}: {url}"
                )
        for path in self.files:
            if not path.startswith("/"):
                raise ValueError(f"agent files are named by their absolute path in the sandbox; got {path!r}")

    @property
    def known(self) -> Preset | None:
        """The preset that it names."""
        return None if self.preset is None else preset(self.preset)

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.preset or self.command
