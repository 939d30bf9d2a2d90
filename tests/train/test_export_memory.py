"""Weights leave the trainer one by one: the room that an export needs is a bucket's, not the model's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rockroll.train.export import BUCKET

WORKER = Path(__file__).with_name("export_memory_worker.py")
MODEL = 192 << 20
"""Bytes of weights; the largest tensor has 16 MiB, and a merge needs it three times."""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    for p in model.parameters():
        p.data.fill_(0.01)
    model.tie_weights()
    assert sum(p.numel() * 4 for p in model.parameters()) > MODEL * 0.9
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def extra(model: Path, folder: Path, *, stage: int, ranks: int, lora: int = 0) -> int:
    """Bytes that rank 0's memory grew by, at most, while it exported."""
    arguments = [str(model), str(folder), str(stage), str(ranks), str(lora)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *arguments, str(rank)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
            stdout=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
    try:
        said = [worker.communicate(timeout=400)[0].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # where one took too long, or failed while the other waits for it
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * ranks
    return int(said[0].split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(("stage", "ranks", "lora"), [(0, 1, 0), (2, 2, 0), (3, 1, 0), (3, 2, 0), (0, 1, 8), (3, 2, 8)])
def test_an_export_needs_room_for_a_bucket_not_for_the_model(
    large_model: Path, tmp_path: Path, stage: int, ranks: int, lora: int
):
    found = extra(large_model, tmp_path, stage=stage, ranks=ranks, lora=lora)
    assert found < (BUCKET if stage == 3 else 0) + (48 << 20), f"{found >> 20} MiB"
