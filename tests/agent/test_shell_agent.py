"""The agent program of `rockroll:shell`, as its own process against a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rockroll.agent import shell_agent

PROGRAM = Path(shell_agent.__file__)


class Endpoint:
    """Chat completions of a script; what was asked is kept."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.connections: set[Any] = set()


@pytest.fixture
async def endpoint(unused_tcp_port: int) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(f"http://127.0.0.1:{unused_tcp_port}/v1")

    async def chat(request: web.Request) -> web.Response:
        endpoint.asked.append(await request.json())
        endpoint.headers.append(request.headers)
        endpoint.connections.add(request.transport)
        if not endpoint.answers:
            return web.json_response({"error": {"message": "no more", "type": "x"}}, status=429)
        content = endpoint.answers.pop(0)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": content}}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield endpoint
    await runner.cleanup()


async def run(
    endpoint: Endpoint, cwd: Path, *answers: str, goal: str = "Do it.", arguments: tuple[str, ...] = ()
) -> tuple[int, str]:
    """(exit code, stderr) of the program, started as the quick start's recipe does."""
    endpoint.answers = list(answers)
    env = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": "k", "ROCKROLL_INSTRUCTION": goal}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(PROGRAM), *arguments),
        cwd=cwd,
        env={"PATH": os.environ["PATH"], **env},
        stderr=subprocess.PIPE,
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return process.returncode, stderr.decode()


async def test_it_runs_what_the_model_proposes_and_shows_what_came_out(endpoint: Endpoint, tmp_path: Path) -> None:
    goal = 'Say "é\\n" 🙂\n\ttwice'
    assert await run(endpoint, tmp_path, "echo 'ö \"x\"' > a", "cat a", "cat b", "done", goal=goal) == (0, "")
    said = endpoint.asked[-1]["messages"]
    assert [m["role"] for m in said] == ["user", "assistant"] * 3 + ["user"]
    assert [m["content"] for m in said] == [
        goal,
        "echo 'ö \"x\"' > a",
        "ok",
        "cat a",
        'ok: ö "x"',
        "cat b",
        "error 1: cat: b: No such file or directory",
    ]
    assert (tmp_path / "a").read_text() == 'ö "x"\n'


async def test_every_question_begins_with_the_one_before_as_it_was(endpoint: Endpoint, tmp_path: Path) -> None:
    await run(endpoint, tmp_path, "  true \n", "true", "done")
    for earlier, later in zip(endpoint.asked, endpoint.asked[1:], strict=False):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
    assert endpoint.asked[1]["messages"][1]["content"] == "  true \n"


async def test_one_connection_and_the_key(endpoint: Endpoint, tmp_path: Path) -> None:
    await run(endpoint, tmp_path, "true", "true", "done")
    assert len(endpoint.connections) == 1 and endpoint.headers[0]["Authorization"] == "Bearer k"


@pytest.mark.parametrize("last", ["done", " Done.\n", "", "  \n"])
async def test_it_ends_where_the_model_is_done_or_proposes_nothing(
    endpoint: Endpoint, tmp_path: Path, last: str
) -> None:
    assert await run(endpoint, tmp_path, "touch a", last, "touch b") == (0, "")
    assert [f.name for f in tmp_path.iterdir()] == ["a"] and len(endpoint.asked) == 2


async def test_after_four_commands_it_ends(endpoint: Endpoint, tmp_path: Path) -> None:
    assert await run(endpoint, tmp_path, *["echo x >> a"] * 9) == (0, "")
    assert (tmp_path / "a").read_text() == "x\n" * 4


async def test_a_model_that_cannot_be_asked_is_one_sentence(endpoint: Endpoint, tmp_path: Path) -> None:
    code, stderr = await run(endpoint, tmp_path)
    assert code == 1 and "answered 429" in stderr and "no more" in stderr and stderr.count("\n") == 1
    code, stderr = await run(Endpoint("http://127.0.0.1:9/v1"), tmp_path)
    assert code == 1 and "no model answers at http://127.0.0.1:9/v1" in stderr and stderr.count("\n") == 1
    code, stderr = await run(Endpoint("https://x"), tmp_path)
    assert code == 1 and "OPENAI_BASE_URL is http://HOST:PORT/PATH; got 'https://x'" in stderr


def took(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.monotonic()
    return work(), time.monotonic() - begun


def test_a_command_is_killed_at_its_limit_with_what_it_started() -> None:
    mark = "31.4159"
    (output, code), seconds = took(lambda: shell_agent.run(f"echo a; sleep {mark} & sleep {mark}", 0.3))
    assert (output, code) == (b"a\n", 124) and seconds < 5
    alive = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(p)]
    assert not alive


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_what_it_leaves_in_the_background_is_not_waited_for() -> None:
    (output, code), seconds = took(lambda: shell_agent.run("sleep 2 & echo a"))
    assert (output, code) == (b"a\n", 0) and seconds < 1.5


def test_endless_output_is_cut() -> None:
    output, code = shell_agent.run("yes")
    assert len(output) == shell_agent.READ_BYTES and code == 124


@pytest.mark.parametrize(
    ("command", "ends"),
    [
        ("exit 3", (b"", 3)),
        ("kill -9 $$", (b"", 137)),
        ("printf 'a\\0b'", (b"a\0b", 0)),
        ("exec >&- 2>&-; exit 4", (b"", 4)),
    ],
)
def test_output_and_exit_code(command: str, ends: tuple[bytes, int]) -> None:
    assert shell_agent.run(command) == ends


def test_a_command_no_system_takes_is_an_answer_too() -> None:
    output, code = shell_agent.run("x" * (1 << 20))
    assert code == 126 and b"too long" in output
    assert shell_agent.run("echo \ud800\0b") == (b"?b\n", 0)


def test_long_output_is_shown_cut() -> None:
    assert shell_agent.show(b"x" * 999, 0) == f"ok: {'x' * shell_agent.SHOWN_CHARACTERS} ..."
    assert shell_agent.show(b" \n", 2) == "error 2"
    assert json.dumps(shell_agent.show(b"\xff", 0)) == '"ok: \\ufffd"'


async def test_with_examples_a_model_sees_the_work_done_first(endpoint: Endpoint, tmp_path: Path) -> None:
    assert await run(endpoint, tmp_path, "echo x > a", "done", arguments=("--examples",)) == (0, "")
    begun = endpoint.asked[0]["messages"]
    assert [message["role"] for message in begun] == [
        "system",
        *["user", "assistant"] * len(shell_agent.EXAMPLES),
        "user",
    ]
    assert begun[-1]["content"] == "Do it."
    assert endpoint.asked[1]["messages"][: len(begun)] == begun
    assert (tmp_path / "a").read_text() == "x\n"
