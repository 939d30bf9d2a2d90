"""The process of one trainer rank: `python -m rockroll.train.server --config FILE --rank R`.

In: a TrainConfig as JSON, then calls over rpc (those of api.Trainer). Out: replies; logs on stderr. It answers from the
moment it is ready, ends with the process that started it, and removes its socket. Leaves fanning out to the ranks to
client.py, noticing that this process died to its parent.

The event loop only carries messages; all of torch runs in one other thread, in the order of the calls.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rockroll import child, rpc
from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig

if TYPE_CHECKING:
    from rockroll.train.trainer import RankTrainer

_log = logging.getLogger("rockroll.train")


async def serve(config: TrainConfig, rank: int) -> None:
    """Load the model, answer calls until SIGTERM or the parent's death. Raises TrainError where it cannot start."""
    if not config.address:
        raise TrainError("train address is empty; name one, such as ipc:///run/rockroll/trainer-{rank}")
    started = time.perf_counter()
    stop = child.end_asked()
    compute = ThreadPoolExecutor(1, thread_name_prefix="compute")

    def begin() -> RankTrainer:
        from rockroll.train.trainer import RankTrainer  # torch and DeepSpeed take seconds; the loop listens meanwhile

        return RankTrainer(config, rank)

    ending = asyncio.create_task(stop.wait())
    loading = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(compute, begin))
    await asyncio.wait([loading, ending], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        child.leave(0)  # nothing is bound yet, and the loading thread cannot be stopped
    trainer = await loading
    address = config.rank_address(rank)
    bodies = {"step": TrainBatch, "values": TrainBatch, "measure": TrainBatch}
    server = rpc.Server(address, _handlers(trainer, compute), types=bodies, key=rpc.key_of(address, config.key))
    await server.start()
    _log.info("rank %d ready at %s after %.1f s", rank, address, time.perf_counter() - started)
    try:
        await ending
    finally:
        await server.close()
    child.leave(0)


def _handlers(trainer: RankTrainer, compute: ThreadPoolExecutor) -> dict[str, rpc.Handler]:
    async def run(work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(compute, work, *arguments)

    async def worst_case(body: int, _peer: rpc.Peer) -> Any:
        return await run(trainer.worst_case, body)

    async def step(body: TrainBatch, _peer: rpc.Peer) -> Any:
        return await run(trainer.step, body)

    async def values(body: TrainBatch, _peer: rpc.Peer) -> Any:
        return await run(trainer.values, body)

    async def measure(body: TrainBatch, _peer: rpc.Peer) -> dict[str, float]:
        return await run(trainer.measure, body)

    async def export(body: str, _peer: rpc.Peer) -> Any:
        return await run(trainer.export, body)

    async def save(body: str, _peer: rpc.Peer) -> None:
        await run(trainer.save, body)

    async def load(body: str, _peer: rpc.Peer) -> int:
        return await run(trainer.load, body)

    async def logprobs(body: list[int], _peer: rpc.Peer) -> list[float]:
        return await run(trainer.logprobs, body)

    async def info(_body: None, _peer: rpc.Peer) -> Any:
        return await run(trainer.info)

    handlers = (worst_case, step, values, measure, export, save, load, logprobs, info)
    return {handler.__name__: handler for handler in handlers}


def main() -> None:
    parser = argparse.ArgumentParser(prog="rockroll.train.server", description="One rank of the trainer.")
    parser.add_argument("--config", required=True, type=Path, help="TrainConfig as JSON")
    parser.add_argument("--rank", required=True, type=int)
    arguments = parser.parse_args()
    child.main("train", arguments.config, TrainConfig, lambda config: serve(config, arguments.rank))


if __name__ == "__main__":
    main()
