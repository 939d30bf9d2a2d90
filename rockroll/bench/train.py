"""Tokens a second of the trainer's step beside a bare DeepSpeed loop, and what padding wastes.

In: a model, how many episodes, ZeRO stage, ranks. Out: figures of this machine; as baseline the bare loop on the same
packed batches, step about step in the same processes. Leaves the loops to train_rank.py, the load to train_load.py.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from rockroll.bench.train_load import heavy_tailed_lengths
from rockroll.bench.train_rank import Measured, Work
from rockroll.errors import TrainError
from rockroll.train.batch import padding_fraction, plan
from rockroll.train.config import TrainConfig


async def run(
    model: str,
    *,
    episodes: int = 128,
    steps: int = 6,
    zero_stage: int = 0,
    ranks: int = 1,
    budget: int = 8192,
    threads: int = 0,
) -> dict[str, Any]:
    """tokens_per_s: input tokens without padding, of all ranks, over the time of a whole step (rows, plan, loss,
    update, metrics). of_bare: the median over steps of bare time / our time, of_bare_cpu the same of CPU time, which
    a busy machine leaves alone. padding_N_fraction: computed tokens that are padding when the batch is dealt to N
    ranks; padding_8k_*: the same for episodes of up to 8,192 tokens.
    """
    with tempfile.TemporaryDirectory(prefix="rockroll-bench-") as folder:
        config = TrainConfig(
            model=model,
            lr=1e-4,
            zero_stage=zero_stage,  # pyright: ignore[reportArgumentType]
            ranks=ranks,
            tokens_per_microbatch=budget,
            threads=threads,
            rendezvous=f"file://{folder}/rendezvous",
        )
        found = await _ranks(Work(train=config, episodes=episodes, steps=steps), Path(folder))
    tokens = sum(found.tokens)
    (wall, cpu), (bare_wall, bare_cpu) = _sums(found.ours), _sums(found.bare)
    long = heavy_tailed_lengths(episodes, context=8192, answer=256, seed=config.seed)
    return {
        "figures": {
            "tokens_per_s": tokens / wall,
            "of_bare": _ratio(found, 0),
            "tokens_per_cpu_s": tokens / cpu,
            "of_bare_cpu": _ratio(found, 1),
            "step_p50_s": statistics.median(wall for wall, _ in found.ours),
            "tokens_per_step": tokens / len(found.tokens),
            "micro_batches": float(len(plan(found.lengths, ranks, budget)[0])),
            **{f"padding_{n}_fraction": _padding(found.lengths, n, budget) for n in (1, 4)},
            **{f"padding_8k_{n}_fraction": _padding(long, n, budget) for n in (1, 4)},
        },
        "baselines": {"bare_tokens_per_s": tokens / bare_wall, "bare_tokens_per_cpu_s": tokens / bare_cpu},
    }


def _sums(steps: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(wall for wall, _ in steps), sum(cpu for _, cpu in steps)


def _ratio(found: Measured, clock: int) -> float:
    return statistics.median(bare[clock] / ours[clock] for ours, bare in zip(found.ours, found.bare, strict=True))


def _padding(lengths: list[int], ranks: int, budget: int) -> float:
    return padding_fraction(lengths, plan(lengths, ranks, budget))


async def _ranks(work: Work, folder: Path) -> Measured:
    """Rank 0's report. Raises TrainError with the end of a rank's log where one fails."""
    file = folder / "work.json"
    file.write_bytes(msgspec.json.encode(work))
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rockroll.bench.train_rank", str(file), str(rank)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # as the trainer's processes: child.main
        )
        for rank in range(work.train.ranks)
    ]
    answers = [asyncio.ensure_future(process.communicate()) for process in processes]
    try:
        for done in asyncio.as_completed(answers):
            await done
            failed = [n for n, process in enumerate(processes) if process.returncode]
            if failed:  # the others wait for it in a collective
                said = (await answers[failed[0]])[1].decode(errors="replace").strip().splitlines()
                raise TrainError(f"bench train: rank {failed[0]} ended early: {said[-1] if said else 'no word'}")
        return msgspec.json.decode((await answers[0])[0].splitlines()[-1], type=Measured)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*answers, return_exceptions=True)
