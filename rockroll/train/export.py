"""The trainer's weights as a Hugging Face folder that an engine, or anybody, loads.

In: a DeepSpeed engine at any ZeRO stage, and the folder the model came from. Out: config, tokenizer files and one
model.safetensors, complete or not there. Every rank calls `gather`, rank 0 writes. Leaves the delivery to engines.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from rockroll.append import cause
from rockroll.digest import digest
from rockroll.errors import TrainError
from rockroll.train import folder
from rockroll.train.api import Exported

_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")


def gather(model: Any, *, sharded: bool, keep: bool) -> dict[str, Tensor]:
    """Every tensor of the model on the CPU, tied ones once, under the names `from_pretrained` expects.

    sharded: the parameters are ZeRO-3's, each is gathered from all ranks in turn. keep: this rank wants them; the
    others get an empty dict but must call, too.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():  # names a tied parameter once, by its first name
        if sharded:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                if keep:
                    tensors[name] = parameter.detach().to("cpu", copy=True)
        elif keep:
            tensors[name] = parameter.detach().to("cpu").contiguous()
    if keep:
        persistent = model.state_dict().keys()
        tensors |= {name: b.detach().cpu() for name, b in model.named_buffers() if name in persistent}
    return tensors


def write(path: Path, model: Any, tensors: dict[str, Tensor], source: Path) -> None:
    """Write the folder's files into `path`, which exists: weights, config, and what `source` has beside weights."""
    from safetensors.torch import save_file

    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_NOT_COPIED):
            shutil.copyfile(file, path / file.name)
    model.config.save_pretrained(path)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def export(path: str, model: Any, tensors: dict[str, Tensor], source: Path, version: int) -> Exported:
    """The whole folder at `path`, replaced in one step. Raises TrainError where it cannot be written."""
    target = Path(path).absolute()
    from safetensors import SafetensorError

    try:
        partial = folder.aside(target)
        write(partial, model, tensors, source)
        folder.put(partial, target)
    except (OSError, SafetensorError) as error:
        why = cause(target, error)
        shutil.rmtree(target.with_name(target.name + ".partial"), ignore_errors=True)  # or it would keep the disk full
        raise TrainError(f"cannot export weights to {target}: {why}") from error
    return Exported(version=version, tensors=len(tensors), digest=digest(tensors))
