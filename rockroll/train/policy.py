"""A causal language model that gives log-probs of chosen tokens only.

In: a Hugging Face folder; padded rows and the places whose next token matters. Out: logits at those places, so that
a vocabulary-sized tensor exists for trained tokens alone. Leaves losses to loss.py, sharding to DeepSpeed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rockroll.errors import TrainError


class Policy(nn.Module):
    """Wraps any `transformers` causal model. The choice of places happens right before its output layer.

    So whatever the model does to logits afterwards (caps, scales) still happens, and under ZeRO-3 every layer is
    called by its own parents, as DeepSpeed's hooks need.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None = None) -> None:
        """head: the model's last layer, where that is not the one that gives logits over the vocabulary."""
        super().__init__()
        self.model = model
        self._index: Tensor | None = None
        last: nn.Module = model.get_output_embeddings() if head is None else head  # type: ignore[operator]
        self._hook = last.register_forward_pre_hook(self._choose)

    def unwrap(self) -> nn.Module:
        """The model as it was given; this policy is of no use afterwards."""
        self._hook.remove()
        return self.model

    def _choose(self, _head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._index is None:
            return None
        return (args[0].flatten(0, 1).index_select(0, self._index)[None], *args[1:])

    def forward(self, inputs: Tensor, index: Tensor) -> Tensor:
        """inputs: [B, T] int64, padded on the right. index: [n] places in the flattened [B·T].

        Returns [n, vocabulary] logits of the tokens that follow those places; [n, 1] values of a value model.
        """
        self._index = index
        try:
            return self.model(input_ids=inputs, use_cache=False).logits[0]
        finally:
            self._index = None


def check_folder(path: str | Path) -> Path:
    """The path, if a model is there. Raises TrainError that says what is missing."""
    folder = Path(path)
    if not str(path) or not folder.is_dir():
        raise TrainError(f"train model: {str(path) or 'an empty path'} is not a folder; name a Hugging Face folder")
    if not (folder / "config.json").is_file():
        raise TrainError(f"train model: {folder} has no config.json; name the folder that holds the model's files")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise TrainError(f"train model: {folder} has no model.safetensors; convert the weights to safetensors")
    return folder


def load_model(path: str | Path, *, dtype: str = "float32") -> Any:
    """The `transformers` model in a folder, on the CPU, without dropout: trained log-probs are the sampled ones."""
    from transformers import AutoModelForCausalLM

    return _loaded(AutoModelForCausalLM, path, dtype)[0]


def load_value_model(path: str | Path, *, dtype: str = "float32") -> Any:
    """The same with a head of size 1 on every place (`ForTokenClassification`), its `score`.

    Where the folder has no such head it is new and all 0: the first values are 0, on every rank.
    """
    from transformers import AutoModelForTokenClassification

    with torch.random.fork_rng(devices=[]):  # a new head is drawn before it is set to 0
        model, said = _loaded(AutoModelForTokenClassification, path, dtype, num_labels=1)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise TrainError(f"train critic: {type(model).__name__} of {path} has no linear layer `score` to give values")
    if any(name.startswith("score.") for name in said["missing_keys"]):
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
    return model


def _loaded(kind: Any, path: str | Path, dtype: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """(model, what `transformers` says of missing and unused weights)."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = check_folder(path)
    before = logging.get_verbosity()
    if options:
        logging.set_verbosity_error()  # it warns of the head that is missing
    try:
        model, said = kind.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers raises whatever its parsers do; the rule is that the folder must load
        said = str(error).strip().splitlines()
        raise TrainError(f"train model: {folder} does not load: {said[0] if said else type(error).__name__}") from error
    finally:
        logging.set_verbosity(before)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model, said


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not; tied weights are named once."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
