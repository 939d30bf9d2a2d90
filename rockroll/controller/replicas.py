"""The engine of a run: its replicas' processes behind one `Engine`.

In: the engine's configuration and the run's processes. Out: an EnginePool whose replicas load their model. Leaves what
the pool does with them to engine/pool.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rockroll.append import write_whole
from rockroll.engine.config import EngineConfig
from rockroll.engine.pool import EnginePool
from rockroll.engine.replica import OnDeath
from rockroll.placement.local import Child, Processes


async def open_pool(config: EngineConfig, logs: Path, processes: Processes) -> EnginePool:
    """Starts every replica, each with its configuration engine-N.json in `logs`, beside its log."""

    async def start(name: str, attempt: int, on_death: OnDeath) -> tuple[str, Child]:
        # a socket of its own: the one of a killed process is still there
        own = dataclasses.replace(config, address=processes.address(f"{name}.{attempt}" if attempt else name))
        file = logs / f"{name}.json"
        write_whole(file, json.dumps(dataclasses.asdict(own), indent=1).encode())
        child = await processes.start(name, "rockroll.engine.server", "--config", str(file), on_death=on_death)
        return own.address, child

    return EnginePool(start, config.replicas, restarts=config.restarts, seed=config.seed, on_end=processes.fail)
