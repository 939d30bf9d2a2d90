"""A real Llama of 40,000 parameters, batches sampled from nothing in particular, and rank processes that are ended."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rockroll.train.api import TrainBatch, TrainSample
from rockroll.train.client import TrainerClient
from rockroll.train.config import TrainConfig

VOCABULARY = 64


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        attention_dropout=0.3,  # must not reach training: trained log-probs are the sampled ones
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def config(model_path: Path) -> TrainConfig:
    return TrainConfig(model=str(model_path), lr=1e-2, threads=1, device="cpu")


def make_batch(
    step: int = 0, *, groups: int = 3, members: int = 4, seed: int = 0, temperature: float = 1.0
) -> TrainBatch:
    """Episodes of one or two samples, masks with holes, rewards 0 or 1 with both in every group."""
    rng = random.Random(f"{seed}/{step}")
    samples = []
    for episode in range(groups * members):
        place = episode % members
        reward = 1.0 if place == 0 else 0.0 if place == 1 else float(rng.random() < 0.3)
        for _ in range(rng.choice([1, 1, 2])):
            length = rng.randint(6, 40)
            mask = [False, False] + [rng.random() < 0.6 for _ in range(length - 2)]
            samples.append(
                TrainSample(
                    ids=[rng.randrange(VOCABULARY) for _ in range(length)],
                    mask=mask,
                    logprobs=[-rng.uniform(3.5, 4.8) if m else 0.0 for m in mask],
                    versions=[0 if m else -1 for m in mask],
                    episode=episode,
                    group=episode // members,
                    reward=reward,
                )
            )
    return TrainBatch(step=step, samples=samples, temperature=temperature)


@pytest.fixture
def batch() -> Callable[..., TrainBatch]:
    return make_batch


class Ranks:
    """The processes of one trainer, and its client."""

    def __init__(self, client: TrainerClient, processes: list[asyncio.subprocess.Process], logs: list[Path]) -> None:
        self.client, self.processes, self.logs = client, processes, logs

    def log(self, rank: int = 0) -> str:
        return self.logs[rank].read_text()


@pytest.fixture
def start_ranks(tmp_path: Path) -> Callable[[TrainConfig], object]:
    """`async with start_ranks(config) as ranks`: real server processes over ipc, ready when entered."""

    @asynccontextmanager
    async def start(config: TrainConfig) -> AsyncIterator[Ranks]:
        run = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        run.mkdir()
        config = replace(config, address=f"ipc://{run}/t-{{rank}}", rendezvous=f"file://{run}/rendezvous")
        (run / "config.json").write_text(json.dumps(asdict(config)))
        processes, logs = [], []
        for rank in range(config.ranks):
            logs.append(run / f"rank-{rank}.log")
            with logs[-1].open("wb") as log:
                processes.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "rockroll.train.server"),
                        *("--config", str(run / "config.json"), "--rank", str(rank)),
                        stderr=log,
                        stdout=log,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )
                )
        client = await TrainerClient.connect(config)
        ready = asyncio.ensure_future(client.info())
        deaths = [asyncio.ensure_future(process.wait()) for process in processes]
        try:
            await asyncio.wait([ready, *deaths], return_when=asyncio.FIRST_COMPLETED)
            assert ready.done(), "\n".join(log.read_text() for log in logs)
            yield Ranks(client, processes, logs)
        finally:
            ready.cancel()
            for process in processes:
                if process.returncode is None:
                    process.terminate()
            await asyncio.gather(*deaths)
            await client.close()

    return start
