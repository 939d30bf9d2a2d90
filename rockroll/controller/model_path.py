"""Which folder a recipe's `model` means.

In: a path, or `tiny`. Out: a folder that holds a Hugging Face model; UsageError with the cure otherwise.
"""

from __future__ import annotations

from pathlib import Path

from rockroll import home
from rockroll.errors import UsageError


def resolve(model: str, key: str = "model") -> Path:
    """The model's folder. UsageError, naming the recipe's key, where there is no model in it."""
    path = home.models_dir() / "tiny" if model == "tiny" else Path(model).expanduser().absolute()
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).exists()]
    if not any(path.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        cure = "scripts/setup makes it" if model == "tiny" else "name a Hugging Face folder, or model: tiny"
        raise UsageError(f"{key}: {path} holds no model ({', '.join(missing)} not there); {cure}")
    return path
