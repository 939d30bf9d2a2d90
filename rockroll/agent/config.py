"""Which program is the agent.

In: the recipe's `agent` section. Out: a checked AgentConfig. Leaves starting it to command.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Any program that runs in a sandbox and calls the model at $OPENAI_BASE_URL."""

    command: str
    """A Bash command line. The goal is in $ROCKROLL_INSTRUCTION, the current folder is the task's."""
    files: dict[str, str] = field(default_factory=dict)
    """Path in the sandbox: file here, from the current folder, or `rockroll:FILE` for one of rockroll/agent/."""
    env: dict[str, str] = field(default_factory=dict)
    """Further environment variables of the agent."""
    timeout: float = 60.0
    """Seconds of its own, without what it waits for the model; then everything it started is killed, and the episode
    is scored with the task's `failure_reward`."""

    def __post_init__(self) -> None:
        if not self.command.strip():
            raise ValueError("agent command is a Bash command line; got an empty one")
        if self.timeout <= 0:
            raise ValueError(f"agent timeout is a number of seconds above 0; got {self.timeout}")
        for path in self.files:
            if not path.startswith("/"):
                raise ValueError(f"agent files are named by their absolute path in the sandbox; got {path!r}")
