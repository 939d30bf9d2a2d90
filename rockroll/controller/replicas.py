"""The engine of a run: its replicas' processes behind one `Engine`.

In: the engine's configuration and the run's processes. Out: an EnginePool whose replicas load their model, here or on
other machines. Leaves what the pool does with them to engine/pool.py.
"""

from __future__ import annotations

import dataclasses

from rockroll.engine.client import EngineClient
from rockroll.engine.config import EngineConfig
from rockroll.engine.pool import EnginePool
from rockroll.engine.replica import OnDeath
from rockroll.placement.local import Place, Process, Processes
from rockroll.placement.needs import Needs


async def open_pool(config: EngineConfig, needs: Needs, processes: Processes) -> EnginePool:
    """Starts every replica, each with its configuration engine-N.json beside its log. needs: of one of them."""
    places: dict[str, Place] = {}

    async def start(name: str, attempt: int, on_death: OnDeath) -> tuple[str, Process]:
        place = await processes.place(name, needs, attempt)
        model = await place.reads(config.model, keep=True)
        own = dataclasses.replace(config, address=place.address, key=place.their_key, model=model)
        child = await place.start("rockroll.engine.server", own, on_death=on_death)
        places[place.address] = place
        return place.address, child

    async def connect(address: str) -> EngineClient:
        place = places[address]
        return await EngineClient.connect(address, place.key, place.reads)

    return EnginePool(
        start, config.replicas, restarts=config.restarts, seed=config.seed, on_end=processes.fail, connect=connect
    )
