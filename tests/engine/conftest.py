"""A small random Llama, as a Hugging Face folder, for every test of the engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save(model: torch.nn.Module, folder: Path) -> Path:
    """As `save_pretrained`, with weights that make a peaked distribution, and a tokenizer's file beside them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text("{}")
    return folder


def llama(folder: Path, seed: int = 0, **changes: object) -> Path:
    torch.manual_seed(seed)
    return save(LlamaForCausalLM(LlamaConfig(**(SHAPE | changes))), folder)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `first` and `other`: one shape, two sets of weights. Not to be changed."""
    root = tmp_path_factory.mktemp("models")
    llama(root / "first", 0)
    llama(root / "other", 1)
    return root


@pytest.fixture(scope="session")
def vllm_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with heads of a size that vLLM's attention takes."""
    root = tmp_path_factory.mktemp("vllm")
    llama(root / "first", 0, head_dim=32)
    llama(root / "other", 1, head_dim=32)
    return root


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    """A copy of `first` that a test may damage."""
    return Path(shutil.copytree(models / "first", tmp_path / "copy"))
