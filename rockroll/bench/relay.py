"""An agent's model call, from inside a sandbox to an engine that answers at once.

In: nothing. Out: latencies and calls a second through every real hop: a client of plain Python stdlib in the sandbox,
the gateway in the node, ZeroMQ, a relay in a process of its own. Leaves the engine out: what is measured is all that
stands between an agent and it.

    python -m rockroll.bench.relay ADDRESS    that process
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from rockroll import home
from rockroll.agent.command import route
from rockroll.bench import relay_load
from rockroll.bench.relay_load import CALLS_OF_MANY, CALLS_OF_ONE, Load
from rockroll.errors import ProcessDied, SandboxError, UsageError
from rockroll.model_service.dialects.openai_chat_answer import completion
from rockroll.model_service.relay import OnDelta, Relay
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta
from rockroll.sandbox.client import Sandbox

CALLS = 2000
MOST_SESSIONS = 4096
"""Each has a socket and a connection in one process, whose descriptors they are."""
BOXES, CONNECTIONS, CALLS_EACH = 4, 8, 250
"""32 calls at once, as several agents make them: a sandbox may have 16 under way."""

_CLIENT = r"""
import http.client, json, os, sys, threading, time, urllib.parse
url = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
connections, calls = int(sys.argv[1]), int(sys.argv[2])
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 200}], "max_tokens": 64})
took = []
def work(calls, took):
    link = http.client.HTTPConnection(url.hostname, url.port)
    for _ in range(calls):
        begun = time.perf_counter()
        link.request("POST", url.path + "/chat/completions", body, {"Content-Type": "application/json"})
        answer = link.getresponse()
        text = answer.read()
        took.append(time.perf_counter() - begun)
        if answer.status != 200:
            sys.exit(text.decode())
work(50, [])
begun = time.monotonic()
threads = [threading.Thread(target=work, args=(calls, took)) for _ in range(connections)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"begun": begun, "ended": time.monotonic(), "took": took}))
"""

_LISTENER = r"""
import http.client, json, os, sys, time, urllib.parse
url = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 200}], "stream": True})
link, took = http.client.HTTPConnection(url.hostname, url.port), []
for i in range(int(sys.argv[1])):
    if i == 50: took, begun = [], time.monotonic()
    link.request("POST", url.path + "/chat/completions", body, {"Content-Type": "application/json"})
    answer = link.getresponse()
    said = ""
    while not said:
        line = answer.readline()
        if line.startswith(b"data: {"):
            said = json.loads(line[6:])["choices"][0]["delta"].get("content")
    took.append(time.monotonic() - float(said))
    answer.read()
print(json.dumps({"begun": begun, "ended": time.monotonic(), "took": took}))
"""
"""How long a word is on its way: what the relay's handler says is the moment at which it says it."""


class _Ran(msgspec.Struct):
    """begun, ended: on this host's monotonic clock, which sandboxes share. took: seconds of each call."""

    begun: float
    ended: float
    took: list[float]


async def run(sessions: int = 256) -> dict[str, Any]:
    """Figures: calls one after the other, and 32 at once from four sandboxes; how long a streamed word is on its way;
    then one sandbox and `sessions` together with transcripts and the journal (relay_load.py).

    Baseline: the same clients on the host against a plain HTTP server in a process of its own, which answers the same
    bytes: no sandbox, no gateway, no relay.
    """
    if not 1 <= sessions <= MOST_SESSIONS:
        raise UsageError(f"--sessions: 1 to {MOST_SESSIONS} sandboxes call together; got {sessions}")
    with tempfile.TemporaryDirectory(prefix="bench-", dir=home.runtime_dir()) as folder:
        address = f"ipc://{folder}/relay"
        async with _process(address), contextlib.AsyncExitStack() as stack:
            boxes = [await stack.enter_async_context(Sandbox()) for _ in range(BOXES)]
            for box in boxes:
                await route(box, address, "bench")
            one = await _in_box(boxes[0], _CLIENT, 1, CALLS)
            many = await asyncio.gather(*(_in_box(box, _CLIENT, CONNECTIONS, CALLS_EACH) for box in boxes))
            words = await _in_box(boxes[0], _LISTENER, CALLS)
    async with _process("plain") as port:
        plain = await _on_host(port, 1, CALLS)
        plain_many = await _on_host(port, BOXES * CONNECTIONS, CALLS_EACH)
    kept = {mode: await relay_load.load(1, CALLS_OF_ONE, mode) for mode in ("off", "write", "fsync")}
    together = {mode: await relay_load.load(sessions, CALLS_OF_MANY, mode) for mode in ("off", "write", "fsync")}
    one_straight = await relay_load.straight(1, CALLS_OF_ONE)
    straight = await relay_load.straight(sessions, CALLS_OF_MANY)
    return {
        "figures": {
            "relay_p50_ms": _percentile([one], 50),
            "relay_p99_ms": _percentile([one], 99),
            "relay_calls_per_s_1_at_once": _rate([one]),
            "relay_p50_ms_32_at_once": _percentile(many, 50),
            "relay_p99_ms_32_at_once": _percentile(many, 99),
            "relay_calls_per_s": _rate(many),
            "relay_first_token_p50_ms": _percentile([words], 50),
            "relay_first_token_p99_ms": _percentile([words], 99),
            **{
                name: value
                for mode in kept
                for name, value in {
                    f"transcript_p50_ms_journal_{mode}": _percentile([kept[mode]], 50),
                    f"transcript_p99_ms_journal_{mode}": _percentile([kept[mode]], 99),
                    f"sessions_calls_per_s_journal_{mode}": _rate([together[mode]]),
                    f"sessions_p50_ms_journal_{mode}": _percentile([together[mode]], 50),
                    f"sessions_p99_ms_journal_{mode}": _percentile([together[mode]], 99),
                }.items()
            },
            "sessions": sessions,
            "sessions_load_process_cpu": _busy(together["write"]),
        },
        "baselines": {
            "plain_http_p50_ms": _percentile([plain], 50),
            "plain_http_p99_ms": _percentile([plain], 99),
            "plain_http_calls_per_s": _rate([plain_many]),
            "straight_p50_ms": _percentile([one_straight], 50),
            "sessions_straight_calls_per_s": _rate([straight]),
            "sessions_straight_p50_ms": _percentile([straight], 50),
            "sessions_straight_p99_ms": _percentile([straight], 99),
        },
    }


def _busy(ran: Load) -> float:
    """Cores that the load process itself used: those are not the relay's."""
    return ran.cpu_s / (ran.ended - ran.begun)


def _percentile(ran: Sequence[_Ran | Load], percent: int) -> float:
    took = [seconds * 1000 for each in ran for seconds in each.took]
    return statistics.quantiles(took, n=100, method="inclusive")[percent - 1]


def _rate(ran: Sequence[_Ran | Load]) -> float:
    seconds = max(each.ended for each in ran) - min(each.begun for each in ran)
    return sum(len(each.took) for each in ran) / seconds


async def _in_box(box: Sandbox, client: str, *arguments: int) -> _Ran:
    command = ["python3", "-I", "-S", "-c", client, *map(str, arguments)]
    done = await box.execute(command, timeout=120)
    if done.exit_code != 0:
        raise SandboxError(f"the benchmark's client failed in sandbox {box.id}: {done.output.strip()[-500:]}")
    return msgspec.json.decode(done.stdout, type=_Ran)


async def _on_host(port: str, connections: int, calls: int) -> _Ran:
    command = [sys.executable, "-I", "-S", "-c", _CLIENT, str(connections), str(calls)]
    client = await asyncio.create_subprocess_exec(
        *command, env={"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await client.communicate()
    if client.returncode != 0:
        raise ProcessDied(f"the benchmark's client on the host ended with code {client.returncode}")
    return msgspec.json.decode(output, type=_Ran)


# ---------------------------------------------------------------------------------------------------------------
# The process that answers
# ---------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _process(where: str) -> AsyncIterator[str]:
    """A process that answers calls at once; yields what it says when it is ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, where, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if not (said := await process.stdout.readline()):
            raise ProcessDied(f"the benchmark's relay ended with code {await process.wait()} before it was ready")
        yield said.decode().strip()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


REPLY = ChatReply(text="ls -la", finish_reason="stop", prompt_tokens=64, completion_tokens=4)


async def _chat(request: ChatRequest, on_delta: OnDelta | None) -> ChatReply:
    if on_delta is None:
        return REPLY
    said = str(time.monotonic())
    on_delta(Delta(text=said))
    return ChatReply(text=said, finish_reason="stop", prompt_tokens=64, completion_tokens=4)


async def _plain(request: web.BaseRequest) -> web.Response:
    json.loads(await request.read())
    return web.Response(body=completion("chatcmpl-0", 0, "m", [REPLY]), content_type="application/json")


async def _serve(where: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    if where == "plain":
        server = await asyncio.get_running_loop().create_server(web.Server(_plain, access_log=None), "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await ended.wait()
        server.close()
        return
    async with Relay(where, _chat, ["m"]):
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
