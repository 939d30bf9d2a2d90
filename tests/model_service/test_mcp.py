"""MCP servers of the host, asked by a program in a sandbox through the sandbox's own endpoint."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rockroll.env.api import Call
from rockroll.env.mcp_tools import McpTools

SERVER = (
    "import sys, uvicorn\nfrom mcp.server import MCPServer\nserver = MCPServer('words')\n"
    "@server.tool()\ndef look(word: str) -> str:\n    'Looks a word up.'\n    return word + ' has feathers'\n"
    "uvicorn.run(server.streamable_http_app(), fd=int(sys.argv[1]), log_level='error')\n"
)


@pytest.fixture(scope="module")
def words() -> Iterator[str]:
    """The URL of a server of another process, in the protocol's own implementation."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who connects before the server is up waits, and is served
        fd = listening.fileno()
        with subprocess.Popen([sys.executable, "-c", SERVER, str(fd)], pass_fds=(fd,)) as process:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
            process.kill()


async def test_its_tools_are_listed_and_called_and_cost_no_model_call(place, serve, words: str) -> None:
    await serve()
    port = await place.box(token=None)
    place.gateway.route("box", place.address, "token", tools={"words": words})
    tools = await McpTools.open(url=f"http://127.0.0.1:{port}/mcp/words")
    assert [each["name"] for each in tools.definitions] == ["look"]
    assert "owl has feathers" in await tools.call(Call("look", {"word": "owl"}, "{}"))
    await tools.aclose()
    assert (await place.say()).status == 200, "the model is there as well"


async def test_only_those_of_the_route_answer_and_only_while_there_is_one(place, serve, words: str) -> None:
    await serve()
    port = await place.box(token=None)
    place.gateway.route("box", place.address, "token", tools={"words": words, "gone": "http://127.0.0.1:9/mcp"})

    async def ask(name: str) -> tuple[int, str]:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        # A connection for each: a change of the route ends those made before it.
        headers = {"Content-Type": "application/json", "Connection": "close"}
        async with place.http.post(f"http://127.0.0.1:{port}/mcp/{name}", data=body, headers=headers) as answer:
            return answer.status, await answer.text()

    status, text = await ask("others")
    assert status == 404 and "there are: gone, words" in text
    status, text = await ask("gone")
    assert status == 502 and "the MCP server gone cannot be reached" in text and "127.0.0.1:9" not in text
    place.gateway.route("box", place.address, "next", tools={})
    assert (await ask("words"))[0] == 404, "another episode has servers of its own"
    place.gateway.route("box", None, "", tools={"words": words})
    assert (await ask("words"))[0] == 503, "no episode, no tools"
