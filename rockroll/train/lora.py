"""LoRA by peft: a frozen model with thin trained matrices beside its own (arXiv 2106.09685).

In: a `transformers` model and a LoraConfig. Out: the same model with adapters in it, their merged weights, and the
model as it was where the adapters are off. Leaves sharding, files and the optimizer to trainer.py and export.py.

What peft renames, `x.weight` to `x.base_layer.weight`, stays in this file: `plain_name` and `peft_name`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rockroll.errors import TrainError
from rockroll.train.lora_config import ALL_LINEAR, LoraConfig

_ADAPTER = "default"  # peft's name for an only adapter


def adapt(model: Any, config: LoraConfig, seed: int) -> None:
    """Freeze the model and put adapters into it, in place. B is 0: the first forward is the frozen model's.

    seed: of A's first values (Kaiming uniform), the same on every rank. Raises TrainError for targets that the model
    does not have, that are not linear layers, or whose weight another layer shares.
    """
    from peft import inject_adapter_in_model

    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(_peft_config(config), model, _ADAPTER)
    except ValueError as error:
        raise TrainError(
            f"train lora targets: {_told(config)} cannot be adapted in this model; its linear layers end in "
            f"{', '.join(_linear(model))}; name some of them, or {ALL_LINEAR}"
        ) from error
    shared = _shared(model)
    for name, layer in _layers(model):
        if not isinstance(layer.get_base_layer(), nn.Linear) and not hasattr(layer.get_base_layer(), "nf"):
            raise TrainError(
                f"train lora targets: {name} is of type {type(layer.get_base_layer()).__name__}, no linear layer; name "
                f"{', '.join(_linear(model))}, or {ALL_LINEAR}"
            )
        if layer.get_base_layer().weight.data_ptr() in shared:
            raise TrainError(
                f"train lora targets: {name} shares its weight with another layer (tied embeddings), so that no merged "
                f"model could hold both; leave it out, or use {ALL_LINEAR}"
            )


def _peft_config(config: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLora

    return PeftLora(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  (peft divides it; a float is as good)
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        task_type="CAUSAL_LM",
    )


def _told(config: LoraConfig) -> str:
    return config.targets if isinstance(config.targets, str) else ", ".join(config.targets)


def _linear(model: Any) -> list[str]:
    """The last parts of the linear layers' names."""
    head = model.get_output_embeddings()
    found = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return sorted(found - {"base_layer", _ADAPTER}) or ["none"]


def _shared(model: Any) -> set[int]:
    """Where weights lie that more than one parameter's name means."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, p in model.named_parameters(remove_duplicate=False):
        at = p.data_ptr()
        (twice if at in seen else seen).add(at)
    return twice


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(plain name, peft's layer) of each adapted layer."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            yield name, module


# ---------------------------------------------------------------------------------------------------------- names


def is_adapters(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """What a parameter or buffer of the frozen model is called without adapters."""
    return name.replace(".base_layer.", ".")


def peft_name(name: str) -> str:
    """What an adapter's parameter is called in adapter_model.safetensors."""
    return "base_model.model." + name.replace(f".{_ADAPTER}.", ".")


# -------------------------------------------------------------------------------------------------------- weights


def adapted(model: Any) -> dict[str, Any]:
    """The adapted layers by the plain names of their weights; none in a model without adapters."""
    return {f"{name}.weight": layer for name, layer in _layers(model)}


def matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank]."""
    return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight


def merged(layer: Any) -> Tensor:
    """W + alpha/rank · B·A of the layer, added in float32 and rounded once to W's dtype."""
    a, b = matrices(layer)
    weight = layer.get_base_layer().weight
    change = (b.float() @ a.float()) * layer.scaling[_ADAPTER]
    return (weight.float() + (change.T if layer.fan_in_fan_out else change)).to(weight.dtype)


class Base:
    """The model without its adapters: the KL's reference, for which no second model is in memory.

    policy: the trained one, inside DeepSpeed's engine; called alike. Under ZeRO-3 a call is a collective.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def __call__(self, inputs: Tensor, index: Tensor) -> Tensor:
        with off(self._policy.model), torch.no_grad():
            return self._policy(inputs, index)

    def eval(self) -> Base:
        return self  # the only thing that training changes is the adapters' dropout


@contextmanager
def off(model: Any) -> Iterator[None]:
    """The model as it was before `adapt`, inside."""
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def write_config(path: Path, config: LoraConfig, model: Any, source: Path) -> None:
    """adapter_config.json, as peft loads it: which layers, and of which model."""
    told = _peft_config(config)
    told.target_modules = sorted(name for name, _ in _layers(model))
    told.base_model_name_or_path = str(source)
    told.inference_mode = True
    told.save_pretrained(str(path))
