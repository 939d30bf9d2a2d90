"""An agent's model call, from inside a sandbox to an engine that answers at once.

In: nothing. Out: latencies and calls a second through every real hop: a client of plain Python stdlib in the sandbox,
the gateway in the node, ZeroMQ, a relay in a process of its own with transcripts and a journal. Leaves the engine out:
what is measured is all that stands between an agent and it.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from rockroll.agent.command import route
from rockroll.bench import relay_load
from rockroll.bench.relay_load import Load
from rockroll.errors import ProcessDied, SandboxError, UsageError
from rockroll.sandbox.client import Sandbox

SECONDS = 2.0
"""How long each load from inside sandboxes goes on: a slow machine makes fewer calls and no longer benchmark."""
MOST_SESSIONS = 4096
"""Each has a socket and a connection in one process, whose descriptors they are."""
BOXES, CONNECTIONS = 4, 8
"""32 calls at once, as several agents make them: a sandbox may have 16 under way."""

_CLIENT = r"""
import http.client, json, os, sys, threading, time, urllib.parse
url = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
connections, seconds = int(sys.argv[1]), float(sys.argv[2])
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 200}], "max_tokens": 64})
took = []
def work(until, took):
    link = http.client.HTTPConnection(url.hostname, url.port)
    while time.monotonic() < until:
        begun = time.perf_counter()
        link.request("POST", url.path + "/chat/completions", body, {"Content-Type": "application/json"})
        answer = link.getresponse()
        text = answer.read()
        took.append(time.perf_counter() - begun)
        if answer.status != 200:
            sys.exit(text.decode())
work(time.monotonic() + 0.25, [])
begun = time.monotonic()
threads = [threading.Thread(target=work, args=(begun + seconds, took)) for _ in range(connections)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"begun": begun, "ended": time.monotonic(), "took": took}))
"""

_LISTENER = r"""
import http.client, json, os, sys, time, urllib.parse
url = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 200}], "stream": True})
link, took = http.client.HTTPConnection(url.hostname, url.port), []
begun = None
while begun is None or time.monotonic() < begun + float(sys.argv[1]):
    if len(took) == 50 and begun is None: took, begun = [], time.monotonic()
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
"""How long a word is on its way: what the engine says is the moment at which it says it."""


class _Ran(msgspec.Struct):
    """begun, ended: on this host's monotonic clock, which sandboxes share. took: seconds of each call."""

    begun: float
    ended: float
    took: list[float]


async def run(sessions: int = 256) -> dict[str, Any]:
    """Figures: calls one after the other, and 32 at once from four sandboxes; how long a streamed word is on its way
    from the engine; then one sandbox and `sessions` together with each mode of the journal, what an early and a late
    turn take of the processor, and what many conversations hold (relay_load.py).

    Baseline: the same clients on the host against a plain HTTP server in a process of its own, which answers the same
    bytes: no sandbox, no gateway, no relay, no transcript.
    """
    if not 1 <= sessions <= MOST_SESSIONS:
        raise UsageError(f"--sessions: 1 to {MOST_SESSIONS} sandboxes call together; got {sessions}")
    async with relay_load.serving("write") as (address, _), contextlib.AsyncExitStack() as stack:
        boxes = [await stack.enter_async_context(Sandbox()) for _ in range(BOXES)]
        for box in boxes:
            await route(box, address, box.id)
        one = await _in_box(boxes[0], _CLIENT, 1, SECONDS)
        many = await asyncio.gather(*(_in_box(box, _CLIENT, CONNECTIONS, SECONDS) for box in boxes))
        words = await _in_box(boxes[0], _LISTENER, SECONDS)
    async with relay_load.process("straight") as port:
        plain = await _on_host(port, 1, SECONDS)
        plain_many = await _on_host(port, BOXES * CONNECTIONS, SECONDS)
    kept = {mode: await relay_load.load(mode, 1, sessions) for mode in ("off", "write", "fsync")}
    one_straight, straight = await relay_load.straight(1, sessions)
    growth, held = await relay_load.growth(), await relay_load.memory()
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
                for mode, (alone, together) in kept.items()
                for name, value in {
                    f"transcript_p50_ms_journal_{mode}": _percentile([alone], 50),
                    f"transcript_p99_ms_journal_{mode}": _percentile([alone], 99),
                    f"sessions_calls_per_s_journal_{mode}": _rate([together]),
                    f"sessions_p50_ms_journal_{mode}": _percentile([together], 50),
                    f"sessions_p99_ms_journal_{mode}": _percentile([together], 99),
                }.items()
            },
            "sessions": sessions,
            "sessions_load_process_cpu": _busy(kept["write"][1]),
            "turn_2_cpu_us": growth.early * 1e6,
            "turn_200_cpu_us": growth.late * 1e6,
            "turn_200_per_turn_2": growth.late / growth.early,
            "turn_200_request_bytes": growth.bytes,
            "memory_256_conversations_100_turns_mib": held.bytes / 2**20,
            "memory_256_conversations_100_turns_tokens": held.tokens,
        },
        "baselines": {
            "plain_http_p50_ms": _percentile([plain], 50),
            "plain_http_p99_ms": _percentile([plain], 99),
            "plain_http_calls_per_s": _rate([plain_many]),
            "straight_p50_ms": _percentile([one_straight], 50),
            "straight_p99_ms": _percentile([one_straight], 99),
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


async def _in_box(box: Sandbox, client: str, *arguments: float) -> _Ran:
    command = ["python3", "-I", "-S", "-c", client, *map(str, arguments)]
    done = await box.execute(command, timeout=120)
    if done.exit_code != 0:
        raise SandboxError(f"the benchmark's client failed in sandbox {box.id}: {done.output.strip()[-500:]}")
    return msgspec.json.decode(done.stdout, type=_Ran)


async def _on_host(port: str, connections: int, seconds: float) -> _Ran:
    command = [sys.executable, "-I", "-S", "-c", _CLIENT, str(connections), str(seconds)]
    client = await asyncio.create_subprocess_exec(
        *command, env={"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await client.communicate()
    if client.returncode != 0:
        raise ProcessDied(f"the benchmark's client on the host ended with code {client.returncode}")
    return msgspec.json.decode(output, type=_Ran)
