"""Many agents' model calls at once: one load process, one gateway, one relay with transcripts and journal.

In: how many sandboxes. Out: calls a second and latencies, and the same load sent straight to an engine stub. The
sandboxes are loopback sockets, attached to a gateway as a node attaches those in sandboxes: no namespaces, so that 256
of them are there in a second, and bench/relay.py says what a namespace adds. Leaves the figures' names to relay.py.

    python -m rockroll.bench.relay_load serve|gateway|load|straight …    one of its processes
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from rockroll import home
from rockroll.controller.model_path import prepare
from rockroll.engine.api import GenerateRequest, Generation, OnTokens
from rockroll.errors import ProcessDied
from rockroll.model_service.dialects.openai_chat_answer import completion
from rockroll.model_service.gateway import Gateway
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest
from rockroll.rollout.dialogue import Dialogue, Sampling
from rockroll.rollout.journal import Journal
from rockroll.rollout.tokenizer import ChatTokenizer

TURNS = 10
"""Of a conversation; then a sandbox begins another, as its next episode would."""
CALLS_OF_ONE = 1000
CALLS_OF_MANY = 20_000
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


class Load(msgspec.Struct):
    """begun, ended: on the monotonic clock. took: seconds of each call. cpu_s: of the load process itself."""

    begun: float
    ended: float
    took: list[float]
    cpu_s: float


async def load(sessions: int, calls: int, mode: str, model: Path | None = None) -> Load:
    """`calls` of all `sessions` together, each one after the other, through gateway and relay.

    mode: the journal's. model: a folder whose tokenizer makes the transcripts; the tiny model's where None.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=home.runtime_dir()) as folder,
        # where runs lie: what a flush costs is their disk's
        tempfile.TemporaryDirectory(prefix="bench-", dir=home.made(home.runs_dir())) as journal,
    ):
        address = f"ipc://{folder}/relay"
        tokens = str(model or prepare("tiny"))
        async with (
            process("serve", address, journal, mode, tokens),
            process("gateway", address, str(sessions)) as ports,
        ):
            return await _drive(ports, calls)


async def straight(sessions: int, calls: int) -> Load:
    """The same load against one HTTP server that answers at once: no gateway, relay, transcript or journal."""
    async with process("straight") as port:
        return await _drive(" ".join([port] * sessions), calls)


async def _drive(ports: str, calls: int) -> Load:
    async with process("load", str(calls), *ports.split()) as said:
        return msgspec.json.decode(said, type=Load)


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[str]:
    """A process of this module; yields the line that it says when it is ready."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, *arguments, stdout=asyncio.subprocess.PIPE, limit=2**26
    )
    assert running.stdout is not None
    try:
        if not (said := await running.stdout.readline()):
            raise ProcessDied(f"the benchmark's {arguments[0]} process ended with code {await running.wait()}")
        yield said.decode().strip()
    finally:
        if running.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                running.terminate()
        await running.wait()


# ---------------------------------------------------------------------------------------------------------------
# The rollout side
# ---------------------------------------------------------------------------------------------------------------


class _AtOnce:
    """An engine that says the same to everyone, at once."""

    def __init__(self, ids: list[int]) -> None:
        self._answer = Generation(
            token_ids=ids, logprobs=[-0.25] * len(ids), versions=[0] * len(ids), finish_reason="stop"
        )

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        return self._answer

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"the benchmark's engine only generates; {name} was asked for")


async def _serve(address: str, folder: str, mode: Any, model: str) -> None:
    tokenizer = ChatTokenizer(model)
    engine: Any = _AtOnce([*tokenizer.encode("ls -la"), tokenizer.stop_ids[0]])
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, max_turns=TURNS, context_length=2**20)
    dialogues: dict[str, Dialogue] = {}
    async with Journal(Path(folder), mode) as journal:

        async def answer(request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
            dialogue = dialogues.get(request.token)
            if dialogue is None or dialogue.turns == TURNS:
                dialogue = Dialogue(request.token, tokenizer, engine, sampling, seed=1, journal=journal)
                dialogues[request.token] = dialogue
            return await dialogue.chat(request, on_delta)

        async with Relay(address, answer, ["m"]):
            print("ready", flush=True)
            await _told_to_end()


# ---------------------------------------------------------------------------------------------------------------
# The node
# ---------------------------------------------------------------------------------------------------------------


async def _gateway(address: str, sessions: str) -> None:
    gateway, ports = Gateway(), []
    for number in range(int(sessions)):
        sock = socket.create_server(("127.0.0.1", 0))
        ports.append(sock.getsockname()[1])
        await gateway.attach(f"box-{number}", sock)
        gateway.route(f"box-{number}", address, f"episode-{number}")
    print(*ports, flush=True)
    await _told_to_end()
    await gateway.close()


async def _straight() -> None:
    reply = ChatReply(text="ls -la", finish_reason="stop", prompt_tokens=64, completion_tokens=4)

    async def answer(request: web.BaseRequest) -> web.Response:
        json.loads(await request.read())
        return web.Response(body=completion("chatcmpl-0", 0, "m", [reply]), content_type="application/json")

    server = await asyncio.get_running_loop().create_server(
        web.Server(answer, access_log=None), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await _told_to_end()
    server.close()


# ---------------------------------------------------------------------------------------------------------------
# The agents
# ---------------------------------------------------------------------------------------------------------------


class _Agent(asyncio.Protocol):
    """One sandbox's client: a conversation of TURNS turns after another, until `left` is used up by all of them."""

    def __init__(self, left: list[int], took: list[float]) -> None:
        self._left, self._took = left, took
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._messages: list[dict[str, str]] = []
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(ProcessDied("the benchmark's gateway closed a connection"))

    def ask(self) -> None:
        if self._left[0] <= 0:
            self.over.set_result(None)
            return
        self._left[0] -= 1
        if len(self._messages) >= 2 * TURNS:
            self._messages = []
        self._messages.append({"role": "user", "content": "x" * 200})
        body = json.dumps({"model": "m", "messages": self._messages, "max_tokens": 64}).encode()
        self._begun = time.perf_counter()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, blank, body = self._heard.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not blank or length is None or len(body) < int(length[1]):
            return
        self._took.append(time.perf_counter() - self._begun)
        self._heard = b""
        if b" 200 " not in head[:16]:
            self.over.set_exception(ProcessDied(f"a call of the benchmark was refused: {body.decode()}"))
            return
        said = json.loads(body)["choices"][0]["message"]["content"]
        self._messages.append({"role": "assistant", "content": said})
        self.ask()


async def _load(calls: str, *ports: str) -> None:
    loop, left, took = asyncio.get_running_loop(), [0], list[float]()
    agents = [(await loop.create_connection(lambda: _Agent(left, took), "127.0.0.1", int(p)))[1] for p in ports]
    for count in (TURNS * len(agents), int(calls)):  # the first to warm up
        left[0] = count
        took.clear()
        begun, cpu = time.monotonic(), time.process_time()
        for agent in agents:
            agent.over = loop.create_future()
            agent.ask()
        await asyncio.gather(*(agent.over for agent in agents))
    ran = Load(begun, time.monotonic(), took, time.process_time() - cpu)
    print(msgspec.json.encode(ran).decode(), flush=True)


async def _told_to_end() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


_ROLES: dict[str, Any] = {"serve": _serve, "gateway": _gateway, "straight": _straight, "load": _load}

if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_ROLES[sys.argv[1]](*sys.argv[2:]))
