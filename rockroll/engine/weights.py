"""Weights from Hugging Face folders into a model.

In: a folder with config.json and safetensors; later, folders with new weights of the same shapes. Out: a model ready
to run; a count and a digest of what it holds after a delivery. Leaves versions, and when to swap, to the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rockroll.digest import digest
from rockroll.engine.api import Loaded
from rockroll.engine.config import EngineConfig
from rockroll.errors import EngineError

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def build(config: EngineConfig) -> Any:
    """The causal language model of `config.model`, in eval mode on its device. EngineError where there is none."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder = Path(config.model)
    check(folder)
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    loader: Any = AutoModelForCausalLM  # with output_loading_info it returns a pair, which its types leave out
    try:
        model, loading = loader.from_pretrained(
            folder, dtype=getattr(torch, config.dtype), output_loading_info=True, local_files_only=True
        )
        model = model.to(device).eval()
    except Exception as error:
        raise EngineError(f"{folder} holds no model that can be loaded: {_line(error)}") from error
    if absent := sorted(loading["missing_keys"]):
        raise EngineError(
            f"{folder} lacks {len(absent)} of the model's tensors, such as {absent[0]}; copy it again whole"
        )
    return model.requires_grad_(False)


def check(folder: Path) -> None:
    """EngineError where the folder lacks a config, weights or a tokenizer."""
    if not folder.is_dir():
        raise EngineError(f"there is no model at {folder}: no such folder; scripts/setup makes the tiny one")
    if not (folder / "config.json").is_file():
        raise EngineError(f"there is no model at {folder}: it has no config.json; name a Hugging Face model folder")
    files(folder)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise EngineError(f"{folder} has a model but no tokenizer (tokenizer.json); save the tokenizer beside it")


def files(folder: Path) -> list[Path]:
    """The folder's safetensors files: one, or the shards that an index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise EngineError(f"{folder} has no weights: neither model.safetensors nor an index of shards is there")
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise EngineError(f"{index} cannot be read: {_line(error)}; copy the folder again whole") from error
    return [folder / name for name in names]


def shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor of the folder's safetensors. EngineError where a file is damaged or cut short."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, list[int]] = {}
    for path in files(folder):
        try:
            with safe_open(str(path), framework="pt") as file:
                found |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise EngineError(f"{path} cannot be read: {_line(error)}; write or copy it again whole") from error
    return found


def read(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files(folder):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise EngineError(f"{file} cannot be read: {_line(error)}; write or copy it again whole") from error
    return tensors


def check_digest(folder: Path, found: str, expected: str) -> None:
    """EngineError where a folder's tensors are not those that its exporter wrote."""
    if found != expected:
        raise EngineError(
            f"{folder} holds other weights than were exported: digest {found} where {expected} was written; deliver "
            "them again",
            code="wrong_weights",
            digest=found,
        )


def fit(model: Any, folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's own names, proved to cover it and to have its shapes.

    Where the file's names are not the model's (mixtures of experts fuse theirs on loading), transformers translates.
    """
    own: dict[str, Tensor] = model.state_dict()
    if not tensors.keys() <= own.keys():
        from transformers import AutoModelForCausalLM

        try:
            tensors = AutoModelForCausalLM.from_pretrained(
                folder, dtype=model.dtype, local_files_only=True
            ).state_dict()
        except Exception as error:
            raise EngineError(f"the weights of {folder} cannot be loaded: {_line(error)}") from error
    reached = {own[name].data_ptr() for name in tensors if name in own}  # a tied tensor is reached by any of its names
    absent = [name for name, tensor in own.items() if name not in tensors and tensor.data_ptr() not in reached]
    if absent or not tensors.keys() <= own.keys():
        named = absent[0] if absent else min(tensors.keys() - own.keys())
        raise EngineError(f"{folder} holds another model: {named} is in only one of the two; export the same model")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            shapes = f"{list(tensor.shape)} where the engine's is {list(own[name].shape)}"
            raise EngineError(f"{folder} holds another model: {name} is {shapes}; export the same model")
    return tensors


def replace(model: Any, tensors: dict[str, Tensor]) -> None:
    """Copy into the model. The tensors are those of `fit`."""
    own: dict[str, Tensor] = model.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def proof(model: Any, delivered: dict[str, Tensor], version: int) -> Loaded:
    """What was delivered, read back from the model wherever it holds it in the same dtype."""
    own: dict[str, Tensor] = model.state_dict()
    held = {name: own[name] for name, t in delivered.items() if name in own and own[name].dtype == t.dtype}
    return Loaded(version=version, tensors=len(delivered), digest=digest(delivered | held), held=len(held))


def stop_ids(config: Any, generation: Any) -> list[int]:
    """The model's own end-of-sequence ids, from generation_config.json where there is one, else config.json."""
    found = generation.eos_token_id if generation is not None else None
    if found is None:
        found = getattr(config, "eos_token_id", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def context_length(config: Any, wanted: int) -> int:
    """`wanted`, or where that is 0 what the model's config says."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if wanted and most and wanted > most:
        raise EngineError(f"engine context_length is {wanted}, the model's is {most}; set at most {most}")
    if not wanted and not most:
        raise EngineError("the model's config.json names no max_position_embeddings; set engine context_length")
    return wanted or int(most or 0)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
