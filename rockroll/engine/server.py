"""The process of one engine: `python -m rockroll.engine.server --config FILE`.

In: an EngineConfig as JSON, then calls over rpc (generate, load, logprobs, info, pulse). Out: replies; logs on
stderr. It answers from the moment its model is loaded, ends with the process that started it, and removes its
socket. A model that cannot be loaded is one line on stderr and exit code 1. Leaves noticing that this process died to
its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from rockroll import child, rpc
from rockroll.engine.api import Engine, EngineInfo, GenerateRequest, Generation, Loaded, Piece, Stats
from rockroll.engine.config import EngineConfig
from rockroll.errors import EngineError

_log = logging.getLogger("rockroll.engine")


class _Load(msgspec.Struct):
    path: str
    version: int
    digest: str = ""


class _Reporting(Engine, Protocol):
    """An engine that says how much it has to do."""

    def stats(self) -> Stats: ...


async def serve(config: EngineConfig) -> None:
    """Load the model, answer calls until SIGTERM or the parent's death. Raises EngineError where it cannot start."""
    if not config.address:
        raise EngineError("engine address is empty; name one, such as ipc:///run/rockroll/engine-0")
    started = time.perf_counter()
    stop = child.end_asked()
    opening = asyncio.create_task(_open(config))
    ending = asyncio.create_task(stop.wait())
    await asyncio.wait([opening, ending], return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        child.leave(0)  # nothing is bound yet, and the loading thread cannot be stopped
    types = {"generate": GenerateRequest, "generate.stream": GenerateRequest, "load": _Load}
    engine = await opening
    server = rpc.Server(config.address, _handlers(engine), types=types, key=rpc.key_of(config.address, config.key))
    await server.start()
    _log.info("ready at %s after %.1f s", config.address, time.perf_counter() - started)
    losing = asyncio.create_task(engine.lost.wait())
    try:
        await asyncio.wait([ending, losing], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await server.close()
    if engine.lost.is_set():
        raise EngineError("a process of the engine died; what it said is above")
    if config.kind == "vllm":
        await engine.close()  # its processes; the other engine's thread may be in a long step, and holds nothing
    child.leave(0)


_ENGINES = {
    "transformers": ("rockroll.engine.transformers_engine", "TransformersEngine"),
    "vllm": ("rockroll.engine.vllm_engine", "VllmEngine"),
}


async def _open(config: EngineConfig) -> Any:
    # torch and transformers take seconds to import; the loop listens meanwhile
    module, name = _ENGINES[config.kind]
    return await getattr(await asyncio.to_thread(importlib.import_module, module), name).open(config)


PULSE_S = 0.5
"""So often an engine says how it is; it says so as long as its event loop turns, whatever its model is doing."""


def _handlers(engine: _Reporting) -> dict[str, rpc.Handler]:
    async def generate(body: GenerateRequest, _peer: rpc.Peer) -> Generation:
        return await engine.generate(body)

    async def stream(body: GenerateRequest, _peer: rpc.Peer) -> AsyncIterator[Piece | Generation]:
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        whole = asyncio.ensure_future(engine.generate(body, pieces.put_nowait))
        whole.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield whole.result()
        finally:
            whole.cancel()
            await asyncio.gather(whole, return_exceptions=True)

    async def load(body: _Load, _peer: rpc.Peer) -> Loaded:
        return await engine.load(body.path, body.version, body.digest)

    async def logprobs(body: list[int], _peer: rpc.Peer) -> list[float]:
        return await engine.logprobs(body)

    async def info(_body: Any, _peer: rpc.Peer) -> EngineInfo:
        return await engine.info()

    async def pulse(_body: Any, _peer: rpc.Peer) -> AsyncIterator[Stats]:
        while True:
            yield engine.stats()
            await asyncio.sleep(PULSE_S)

    return {
        "generate": generate,
        "generate.stream": stream,
        "load": load,
        "logprobs": logprobs,
        "info": info,
        "pulse": pulse,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="rockroll.engine.server", description="One engine.")
    parser.add_argument("--config", required=True, type=Path, help="EngineConfig as JSON")
    child.main("engine", parser.parse_args().config, EngineConfig, serve)


if __name__ == "__main__":
    main()
if __name__ == "__mp_main__":  # a process of vLLM, which multiprocessing began by importing this module
    child.end_with_parent()
