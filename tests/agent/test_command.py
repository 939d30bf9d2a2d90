"""What a command agent's shell is given, and what it may not be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from rockroll.agent.command import CommandAgent, script
from rockroll.agent.config import AgentConfig
from rockroll.errors import UsageError


def bash(code: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "--norc", "-s"], input=code + b"\necho after=$A\n", capture_output=True, timeout=10)


def test_it_starts_in_its_folder_which_is_made_with_its_variables_as_they_are(tmp_path: Path) -> None:
    place = tmp_path / "it's new"
    odd = "a 'b' \"c\" $HOME `id` \\ \n last é"
    done = bash(script('pwd; printf "%s" "$ROCKROLL_INSTRUCTION"', str(place), {"ROCKROLL_INSTRUCTION": odd}))
    assert done.stdout.decode() == f"{place}\n{odd}after=\n"


def test_its_exit_and_its_variables_stay_its_own(tmp_path: Path) -> None:
    done = bash(script("A=1; exit 3", str(tmp_path), {}))
    assert done.stdout == b"after=\n"


def test_a_comment_at_the_end_of_the_command_hides_nothing(tmp_path: Path) -> None:
    assert bash(script("echo ran # so", str(tmp_path), {})).stdout == b"ran\nafter=\n"


def test_a_folder_that_cannot_be_made_stops_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = bash(script("echo ran", str(tmp_path / "file" / "x"), {}))
    assert b"ran" not in done.stdout and b"Not a directory" in done.stderr


def test_its_files_are_read_when_it_is_made(tmp_path: Path) -> None:
    mine = tmp_path / "a.py"
    mine.write_text("print(1)")
    CommandAgent(AgentConfig(command="x", files={"/a.py": str(mine), "/b.py": "rockroll:shell_agent.py"}))
    with pytest.raises(UsageError, match=r"nothere.py cannot be read \(No such file"):
        CommandAgent(AgentConfig(command="x", files={"/a.py": str(tmp_path / "nothere.py")}))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"command": " "}, "got an empty one"),
        ({"command": "x", "timeout": 0}, "above 0; got 0"),
        ({"command": "x", "files": {"a.py": "b"}}, "absolute path in the sandbox; got 'a.py'"),
        ({"command": "x", "mcp": {"My": "http://x"}}, "agent mcp is NAME: http://"),
        ({"command": "x", "mcp": {"my": "python3 x"}}, "got my: python3 x"),
    ],
)
def test_wrong_configurations_say_the_rule(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AgentConfig(**wrong)  # type: ignore[arg-type]


def test_mcp_servers_are_named_by_the_box_s_own_endpoint(tmp_path: Path) -> None:
    config = AgentConfig(
        command='echo "$ROCKROLL_MCP_MY_WORDS"; echo "$ROCKROLL_MCP"', mcp={"my-words": "http://host:1"}
    )
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:41414/v1"}
    one, every, _ = bash(script(CommandAgent(config)._line, str(tmp_path), environment)).stdout.decode().splitlines()
    assert one == "http://127.0.0.1:41414/mcp/my-words"
    assert json.loads(every) == {"mcpServers": {"my-words": {"type": "http", "url": one}}}
