"""An agent: a program that is put into a sandbox, works there, and asks the model over HTTP.

In: an AgentConfig, a sandbox with an open session, a goal and files. Out: the Observation of the agent's run; after
`end` nothing that it started is alive. Leaves the model's answers to the model service and grading to the task.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rockroll.agent.config import AgentConfig
from rockroll.errors import SessionError, UsageError
from rockroll.sandbox.wire import DEFAULT_SESSION, Observation

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

BUILT_IN = "rockroll:"
"""Prefix of a file of this folder, in AgentConfig.files."""

OUTPUT_KEPT = 16 << 10
"""Bytes kept of each of the agent's own streams: enough for the end of a traceback."""


LOGS_KEPT = 32 << 10
"""Bytes of its log files, all together."""
LOGS_SECONDS = 10.0


async def route(
    sandbox: Sandbox,
    upstream: str | None,
    token: str,
    budget: Mapping[str, float] | None = None,
    tools: Mapping[str, str] | None = None,
    seat: int = 0,
) -> str | None:
    """From now on the model calls of this sandbox go to the relay at `upstream`, under this token; None: they are
    refused.

    budget: what they may use up together (docs/model-service.md). tools: MCP servers' URLs by name, which the box may
    ask at its endpoint's /mcp/NAME. seat: which of the box's endpoints, see `take_seat`. Returns why calls of the route
    before were refused for want of its budget, as a sentence; None where none was.
    """
    body = {"id": sandbox.id, "upstream": upstream, "token": token, "budget": budget or {}, "tools": tools or {}}
    return await sandbox.ask("model.route", {**body, "seat": seat})


async def take_seat(sandbox: Sandbox, seat: int) -> dict[str, str]:
    """One more model endpoint in a sandbox, for an agent beside others, until its route ends: the variables that tell
    clients where it is. 0 is the one that every sandbox has."""
    return await sandbox.ask("model.seat", {"id": sandbox.id, "seat": seat})


class CommandAgent:
    """`put` → `run` → `end`, once for each lease of a sandbox. UsageError where one of its files cannot be read."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        known = config.known
        self._line = _servers(config.mcp) + (known.line if known else config.command)
        self._logs = (*(known.logs if known else ()), *config.logs)
        sources = {**(known.files if known else {}), **config.files}
        self._files = {path: _read(source) for path, source in sources.items()}

    async def put(self, sandbox: Sandbox, files: Mapping[str, bytes]) -> None:
        """The agent's files and the task's, by their absolute path in the sandbox."""
        await asyncio.gather(*(sandbox.write_file(path, data) for path, data in {**self._files, **files}.items()))

    async def run(
        self,
        sandbox: Sandbox,
        instruction: str,
        cwd: str,
        env: Mapping[str, str],
        *,
        session: str = DEFAULT_SESSION,
    ) -> Observation:
        """Run the command to its end, in a session that is open: the pool's, or another. Its time is the caller's to
        count: cancelled, it is killed."""
        command = script(self._line, cwd, {**self.config.env, **env, "ROCKROLL_INSTRUCTION": instruction})
        return await sandbox.arun(command, session=session, max_output=OUTPUT_KEPT)

    async def end(self, sandbox: Sandbox, session: str = DEFAULT_SESSION) -> None:
        """Kill every process of the agent, what it left in the background included."""
        try:
            await sandbox.close_session(session)
        except SessionError:
            # Its shell is gone already, and all that it started with it.
            pass

    async def logs(self, sandbox: Sandbox) -> str:
        """The ends of the files that it keeps of its own work, each below its name; "" where there are none. After
        `end`: nobody writes them any more."""
        if not self._logs:
            return ""
        # A pattern stands there without quotes, so that the shell fills it in; what is no file is passed over.
        line = 'for f in {}; do [ -f "$f" ] && printf "== %s\\n" "$f" && tail -c {} "$f"; done; :'
        code = line.format(" ".join(map(_pattern, self._logs)), LOGS_KEPT)
        observation = await sandbox.execute(["bash", "-c", code], timeout=LOGS_SECONDS, max_output=LOGS_KEPT)
        return observation.stdout.decode(errors="replace").strip()


def _servers(names: Collection[str]) -> str:
    """Exports that say where the MCP servers are in the box, one by one and as the JSON that agents take."""
    at = '"${{OPENAI_BASE_URL%/v1}}/mcp/{}"'
    lines = [f"export ROCKROLL_MCP_{name.upper().replace('-', '_')}={at.format(name)}\n" for name in names]
    if lines:
        each = ", ".join(
            f'\\"{name}\\": {{\\"type\\": \\"http\\", \\"url\\": \\"${{OPENAI_BASE_URL%/v1}}/mcp/{name}\\"}}'
            for name in names
        )
        lines.append(f'export ROCKROLL_MCP="{{\\"mcpServers\\": {{{each}}}}}"\n')
    return "".join(lines)


def _pattern(text: str) -> str:
    """The pattern as a word of a shell: everything quoted but what makes it a pattern."""
    return re.sub(r"[^\w/~*?.\[\]-]", lambda found: "\\" + found[0], text)


def script(command: str, cwd: str, env: Mapping[str, str]) -> bytes:
    """Bash that runs `command` in a shell of its own (so that its `exit` ends that one), in a folder that is made."""
    place = shlex.quote(cwd)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
    enter = f"cd {place} 2>/dev/null || {{ mkdir -p {place} && cd {place}; }} || exit\n"
    return f"(\n{enter}{exports}{command}\n)".encode("utf-8", "surrogateescape")


def _read(source: str) -> bytes:
    path = Path(__file__).parent / source.removeprefix(BUILT_IN) if source.startswith(BUILT_IN) else Path(source)
    try:
        return path.read_bytes()
    except OSError as error:
        known = ", ".join(sorted(BUILT_IN + p.name for p in Path(__file__).parent.glob("*_agent.py")))
        raise UsageError(
            f"agent files: {source} cannot be read ({error.strerror}); of rockroll's own: {known}"
        ) from None
