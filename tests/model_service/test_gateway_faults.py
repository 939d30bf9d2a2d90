"""The rollout side dies, hangs or is nothing like a relay: every sandbox is told within seconds, and recovers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rockroll import rpc

SERVER = """
import asyncio, sys
from rockroll.model_service.relay import Relay
from rockroll.model_service.wire import ChatReply, Delta

async def handler(request, on_delta):
    if on_delta:
        on_delta(Delta(text="Hel"))
    if request.messages[-1].content == "wait":
        print("waiting", flush=True)
        await asyncio.Event().wait()
    return ChatReply(text="hello", finish_reason="stop", prompt_tokens=1, completion_tokens=1)

async def main():
    async with Relay(sys.argv[1], handler, ["tiny"]):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def relay_process(address: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, address, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_killed_relay_means_503_for_calls_under_way_and_new_ones_and_its_return_means_answers(place):
    await place.box()
    async with relay_process(place.address) as process:
        assert (await place.say()).status == 200
        call = asyncio.create_task(place.say("wait"))
        assert process.stdout is not None and await process.stdout.readline() == b"waiting\n"
        process.kill()
        async with asyncio.timeout(2):
            answer = await call
        assert answer.status == 503 and answer.error["code"] == "upstream_lost"
        await process.wait()
    async with asyncio.timeout(3):
        answer = await place.say()
    assert answer.status == 503 and answer.error["code"] == "upstream_lost"
    async with relay_process(place.address):
        async with asyncio.timeout(5):
            while (answer := await place.say()).status == 503:
                pass
        assert answer.status == 200
        assert (await place.get("/models")).json["data"][0]["id"] == "tiny"


async def test_a_relay_that_is_killed_in_mid_stream_ends_the_stream_with_an_error(place):
    await place.box()
    async with relay_process(place.address) as process:
        body = {"messages": [{"role": "user", "content": "wait"}], "stream": True}
        async with asyncio.timeout(5), place.http.post(place.url(), json=body) as response:
            data = b""
            while b"Hel" not in data:
                data += await response.content.readany()
            process.kill()
            assert b"upstream_lost" in await response.read()


async def test_a_relay_that_dies_while_nobody_calls_is_noticed(place):
    await place.box()
    async with relay_process(place.address):
        assert (await place.say()).status == 200
    async with asyncio.timeout(3):
        assert (await place.say()).status == 503


async def test_a_call_waits_a_moment_for_a_relay_that_is_starting(place, serve):
    await place.box()
    call = asyncio.create_task(place.say())
    await asyncio.sleep(0)
    await serve()
    assert (await call).status == 200


async def test_an_address_where_no_relay_answers_is_a_503_that_says_so(place):
    server = rpc.Server(place.address, {})
    await server.start()
    try:
        await place.box()
        answer = await place.say()
        assert answer.status == 503 and "no method" in answer.error["message"]
    finally:
        await server.close()


async def test_an_address_that_is_none_is_a_503_that_says_so(place):
    place.address = "tcp://nowhere"
    await place.box()
    assert (await place.say()).status == 503


async def test_a_relay_on_another_host_whose_key_is_missing_is_a_503_that_tells_no_path(place, tmp_path, monkeypatch):
    monkeypatch.setenv("ROCKROLL_HOME", str(tmp_path))
    place.address = "tcp://192.0.2.1:5000"
    await place.box()
    answer = await place.say()
    assert answer.status == 503 and "lacks the key" in answer.text and str(tmp_path) not in answer.text


async def test_every_sandbox_of_one_run_shares_one_connection_which_ends_with_the_last_route(place, serve):
    relay = await serve()
    for name in ("a", "b"):
        await place.box(name)
        await place.say(sandbox=name)
    assert len(relay._server.peers) == 1
    place.gateway.route("a", None, "")
    assert (await place.say(sandbox="b")).status == 200
    place.gateway.route("b", None, "")
    assert place.gateway._upstreams == {}
