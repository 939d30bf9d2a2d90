"""A GGUF file as a Hugging Face folder: `python -m rockroll.controller.gguf FILE FOLDER`.

In: a GGUF of a language model that transformers can read. Out: a folder with config, bfloat16 weights, tokenizer and
chat template, whole or not there. What the file quantized stays as coarse as it was, but can be trained. A process of
its own, since reading takes torch and a quarter of a minute. Leaves naming the folder to model_path.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rockroll.train import folder


def convert(source: Path, target: Path) -> None:
    """Write `target`. Raises whatever transformers raises for a file that it cannot read."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    place, name = str(source.parent), source.name
    model: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=name)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the tensors are whole numbers again; with it, saving quantizes once more
    config.dtype = torch.bfloat16
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    partial = folder.aside(target)
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    folder.put(partial, target)


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 - one line for the process that asked, whatever it is
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(1)
