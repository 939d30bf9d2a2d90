"""What rockroll adds to vLLM's worker, the process that holds the model.

In: calls by vLLM's collective_rpc, plain values only. Out: weights read from a folder into the running model, with what
was read (name, dtype, shape, bit sum) and how much of it the model holds afterwards. Leaves pausing, versions and
comparing with the exporter to vllm_engine.py. vLLM imports this module into every worker it starts.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from rockroll import child
from rockroll.digest import bit_sum
from rockroll.engine import fused, weights
from rockroll.engine.fused import Bits

if multiprocessing.parent_process() is not None:
    child.end_with_parent()
# at each delivery it warns of every layer that had nothing to load: rotary embeddings, and tied heads, which are looked
# after below
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


class WorkerExtension:
    """Mixed into vLLM's worker class: `self` is a worker, whose names all begin otherwise than these."""

    def rockroll_load(self: Any, folder: str) -> dict[str, Any]:
        """Read every tensor of the folder into the model, in place; compiled code and CUDA graphs stay valid.

        Returns `read`, a list of [name, dtype, shape, bit sum] of exactly what the model's loader was handed; `held`,
        how many of them were found in the model afterwards; `wrong`, a parameter that holds other bits, or "".
        """
        model = self.model_runner.get_model()
        dtype = self.model_runner.model_config.dtype
        read: list[list[Any]] = []
        given: dict[str, Bits] = {}

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in _tensors(Path(folder), str(self.device)):
                read.append([name, str(tensor.dtype), list(tensor.shape), bit_sum(tensor)])
                as_held = read[-1][3] if tensor.dtype == dtype else bit_sum(tensor.to(dtype))
                given[name] = Bits(tensor.numel(), as_held)
                yield name, tensor

        self.reload_weights(weights_iterator=tensors())
        _pack_tied_heads(model, set(given))
        held = {
            name: Bits(parameter.numel(), bit_sum(parameter))
            for name, parameter in model.named_parameters()
            if parameter.dtype == dtype
        }
        found, wrong = fused.compare(given, held, getattr(model, "packed_modules_mapping", None) or {})
        return {"read": read, "held": found, "wrong": wrong or ""}


def _pack_tied_heads(model: Any, loaded: set[str]) -> None:
    """A CPU's vLLM computes logits with a packed copy of the head, made when the head is loaded. A head that is tied to
    the embedding never is: its copy stayed that of the first weights, and log-probs drifted from the trainer's."""
    for name, layer in model.named_modules():
        if hasattr(layer, "cpu_linear") and hasattr(layer, "tie_weights") and f"{name}.weight" not in loaded:
            layer.quant_method.process_weights_after_loading(layer)


def _tensors(folder: Path, device: str) -> Iterator[tuple[str, Tensor]]:
    """One after the other, on the device of the model: a GPU sums the bits of what has arrived there."""
    from safetensors import safe_open

    for path in weights.files(folder):
        with safe_open(str(path), framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                yield name, file.get_tensor(name)
