"""Many agents' model calls at once: one load process, one gateway, one relay with transcripts and journal.

In: how many sandboxes. Out: calls a second and latencies, and the same load sent straight to an engine stub; what an
early and a late turn of one conversation take, and what many conversations hold. The sandboxes are loopback sockets,
attached to a gateway as a node attaches those in sandboxes: no namespaces, so that 256 of them are there in a second,
and bench/relay.py says what a namespace adds. Every phase ends by the clock, so that a slow machine makes fewer calls
and no longer benchmark. Leaves the figures' names to relay.py.

    python -m rockroll.bench.relay_load serve|gateway|load|growth|memory|straight …    one of its processes
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import re
import resource
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from rockroll import home
from rockroll.controller.model_path import prepare
from rockroll.engine.api import GenerateRequest, Generation, OnTokens, Piece
from rockroll.errors import ProcessDied
from rockroll.model_service.dialects.openai_chat_answer import completion
from rockroll.model_service.gateway import Gateway
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest, Message
from rockroll.rollout.dialogue import Dialogue
from rockroll.rollout.journal import Journal
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rollout.wishes import Sampling

TURNS = 10
"""Of a conversation; then a sandbox begins another, as its next episode would."""
SECONDS_OF_ONE, SECONDS_OF_MANY = 1.5, 3.0
"""How long a load goes on; before it, as a part of it, it goes on without being measured."""
WARM = 0.25
LONG, BLOCK, LONG_S = 200, 10, 6.0
"""Turns of the conversations whose growth is measured, turns at either end that are compared, and for how long."""
KEPT, KEPT_TURNS = 256, 100
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")


class Load(msgspec.Struct):
    """begun, ended: on the monotonic clock. took: seconds of each call. cpu_s: of the load process itself."""

    begun: float
    ended: float
    took: list[float]
    cpu_s: float


class Growth(msgspec.Struct):
    """Processor seconds of relay and gateway together, of one turn: at the beginning of a conversation and at its end.
    bytes: of the last request."""

    early: float
    late: float
    bytes: int


class Held(msgspec.Struct):
    """What KEPT conversations of KEPT_TURNS turns hold in the relay's process."""

    bytes: int
    tokens: int


async def load(mode: str, *sessions: int, model: Path | None = None) -> list[Load]:
    """For each number of sessions: so many together, each one call after the other, through gateway and relay.

    mode: the journal's. model: a folder whose tokenizer makes the transcripts; the tiny model's where None.
    """
    async with _served(mode, max(sessions), model) as (_, _, ports):
        return [await drive(ports[:each]) for each in sessions]


async def growth(model: Path | None = None, turns: int = LONG) -> Growth:
    """What an early turn and a late one of a conversation of so many turns take of the processor."""
    async with (
        _served("write", 1, model, turns) as (relay, gateway, ports),
        process("growth", str(LONG_S), str(turns), relay, gateway, *ports) as said,
    ):
        return msgspec.json.decode(said, type=Growth)


async def memory(model: Path | None = None) -> Held:
    """What many long conversations hold."""
    async with process("memory", str(model or prepare("tiny"))) as said:
        return msgspec.json.decode(said, type=Held)


async def straight(*sessions: int) -> list[Load]:
    """The same load against one HTTP server that answers at once: no gateway, relay, transcript or journal."""
    async with process("straight") as port:
        return [await drive([port] * each) for each in sessions]


async def drive(ports: list[str]) -> Load:
    seconds = SECONDS_OF_ONE if len(ports) == 1 else SECONDS_OF_MANY
    async with process("load", str(seconds), *ports) as said:
        return msgspec.json.decode(said, type=Load)


@contextlib.asynccontextmanager
async def _served(
    mode: str, sessions: int, model: Path | None, turns: int = TURNS
) -> AsyncIterator[tuple[str, str, list[str]]]:
    """A relay and a gateway: their process ids, and the ports of the sandboxes."""
    async with (
        serving(mode, model, turns) as (address, relay),
        process("gateway", address, str(sessions)) as said,
    ):
        gateway, *ports = said.split()
        yield relay, gateway, ports


@contextlib.asynccontextmanager
async def serving(mode: str, model: Path | None = None, turns: int = TURNS) -> AsyncIterator[tuple[str, str]]:
    """A relay with transcripts and a journal: its address, and the id of its process."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=home.runtime_dir()) as folder,
        # where runs lie: what a flush costs is their disk's
        tempfile.TemporaryDirectory(prefix="bench-", dir=home.made(home.runs_dir())) as journal,
    ):
        address = f"ipc://{folder}/relay"
        async with process("serve", address, journal, mode, str(model or prepare("tiny")), str(turns)) as pid:
            yield address, pid


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
    """An engine that says the same to everyone, at once; to one that listens, the time at which it says so."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._answer = self._says("ls -la")

    def _says(self, text: str) -> Generation:
        ids = [*self._tokenizer.encode(text), self._tokenizer.stop_ids[0]]
        return Generation(token_ids=ids, logprobs=[-0.25] * len(ids), versions=[0] * len(ids), finish_reason="stop")

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        if on_tokens is None:
            return self._answer
        said = self._says(str(time.monotonic()))
        on_tokens(Piece(start=0, token_ids=said.token_ids, logprobs=said.logprobs, versions=said.versions))
        return said

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"the benchmark's engine only generates; {name} was asked for")


_SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=64, max_turns=10**9, context_length=2**20)


async def _serve(address: str, folder: str, mode: Any, model: str, turns: str) -> None:
    tokenizer = ChatTokenizer(model)
    engine: Any = _AtOnce(tokenizer)
    dialogues: dict[str, Dialogue] = {}
    async with Journal(Path(folder), mode) as journal:

        async def answer(request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
            dialogue = dialogues.get(request.token)
            if dialogue is None or dialogue.turns >= int(turns):
                dialogue = Dialogue(request.token, tokenizer, engine, _SAMPLING, seed=1, journal=journal)
                dialogues[request.token] = dialogue
            return await dialogue.chat(request, on_delta)

        async with Relay(address, answer, ["m"]):
            print(os.getpid(), flush=True)
            await _told_to_end()


async def _memory(model: str) -> None:
    """Conversations as a relay has them: each call's new messages are decoded from bytes of their own."""
    tokenizer = ChatTokenizer(model)
    engine: Any = _AtOnce(tokenizer)

    async def talk(turns: int) -> Dialogue:
        dialogue, messages = Dialogue("memory", tokenizer, engine, _SAMPLING, seed=1), list[Message]()
        for _ in range(turns):
            new = msgspec.msgpack.encode(Message("user", "x" * 200))
            messages = [*messages, msgspec.msgpack.decode(new, type=Message)]
            turn = await dialogue.ask(messages)
            messages = [*messages, Message("assistant", turn.text)]
        return dialogue

    await talk(KEPT_TURNS)  # what is there once is no conversation's
    gc.collect()
    before = _resident()
    kept = [await talk(KEPT_TURNS) for _ in range(KEPT)]
    held = Held(_resident() - before, sum(each.transcript.turns[-1].end for each in kept))
    print(msgspec.json.encode(held).decode(), flush=True)
    await _told_to_end()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
    print(os.getpid(), *ports, flush=True)
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
    """One sandbox's client: a conversation of so many turns after another, until `until` on the monotonic clock.

    took: each call's seconds are added. on_turn: told the number of the turn that begins, from 0 on.
    """

    def __init__(self, took: list[float], turns: int = TURNS, on_turn: Callable[[int], None] | None = None) -> None:
        self._took, self._turns, self._on_turn = took, turns, on_turn
        self.until = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.bytes = 0
        """Of the last request."""
        self._messages: list[dict[str, str]] = []
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(ProcessDied("the benchmark's gateway closed a connection"))

    def ask(self) -> None:
        if time.monotonic() >= self.until:
            self.over.set_result(None)
            return
        if len(self._messages) >= 2 * self._turns:
            self._messages = []
        self._messages.append({"role": "user", "content": "x" * 200})
        body = json.dumps({"model": "m", "messages": self._messages, "max_tokens": 64}).encode()
        self.bytes = len(body)
        if self._on_turn is not None:
            self._on_turn(len(self._messages) // 2)
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


async def _load(seconds: str, *ports: str) -> None:
    loop, took = asyncio.get_running_loop(), list[float]()
    agents = [(await loop.create_connection(lambda: _Agent(took), "127.0.0.1", int(p)))[1] for p in ports]
    for within in (WARM * float(seconds), float(seconds)):
        took.clear()
        begun, cpu = time.monotonic(), time.process_time()
        for agent in agents:
            agent.until, agent.over = begun + within, loop.create_future()
            agent.ask()
        await asyncio.gather(*(agent.over for agent in agents))
    ran = Load(begun, time.monotonic(), took, time.process_time() - cpu)
    print(msgspec.json.encode(ran).decode(), flush=True)


async def _growth(seconds: str, turns: str, relay: str, gateway: str, port: str) -> None:
    """Whole conversations until the time is over, and three in any case: the first is the warm-up."""
    last = int(turns) - 1
    ends = (1, 1 + BLOCK, last - BLOCK, last)
    marks: dict[int, list[float]] = {at: [] for at in ends}

    def on_turn(number: int) -> None:
        if number in marks:
            marks[number].append(_processor(relay) + _processor(gateway))
        if number == last and len(marks[last]) >= 3 and time.monotonic() >= end:
            agent.until = 0.0

    loop, end = asyncio.get_running_loop(), time.monotonic() + float(seconds)
    _, agent = await loop.create_connection(lambda: _Agent([], int(turns), on_turn), "127.0.0.1", int(port))
    agent.until = math.inf
    agent.ask()
    await agent.over
    spent = [(b - a, d - c) for a, b, c, d in zip(*marks.values(), strict=False)][1:]
    early, late = (statistics.median(each) / BLOCK for each in zip(*spent, strict=True))
    print(msgspec.json.encode(Growth(early, late, agent.bytes)).decode(), flush=True)


def _processor(pid: str) -> float:
    """Seconds that a process's threads have run so far, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def _told_to_end() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


_ROLES: dict[str, Any] = {
    "serve": _serve,
    "gateway": _gateway,
    "straight": _straight,
    "load": _load,
    "growth": _growth,
    "memory": _memory,
}

if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_ROLES[sys.argv[1]](*sys.argv[2:]))
