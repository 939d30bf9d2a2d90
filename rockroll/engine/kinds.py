"""Which engines can run on this host.

In: what is installed, and whether there is a GPU. Out: one `Kind` an engine, with the cure where it cannot run. Reads
package metadata only: neither torch nor vLLM is imported. Leaves starting one to server.py.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rockroll.engine import vllm_versions
from rockroll.engine.config import EngineConfig
from rockroll.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    ok: bool
    detail: str
    cure: str = ""


def kinds() -> list[Kind]:
    """transformers, then vllm."""
    return [_transformers(), _vllm()]


def require(config: EngineConfig) -> Kind:
    """The engine that a recipe asks for. UsageError where it cannot run here."""
    kind = next(kind for kind in kinds() if kind.name == config.kind)
    if not kind.ok:
        raise UsageError(f"engine.kind {kind.name} cannot run here: {kind.detail}; {kind.cure}")
    return kind


def has_gpu() -> bool:
    """Whether NVIDIA's driver shows a GPU."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists()


def gpu_bytes() -> int:
    """The memory of the first GPU, by NVIDIA's own tool; 0 where there is none, or it says nothing."""
    if not has_gpu():
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        return int(said[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def on_gpu(config: EngineConfig) -> bool:
    """Whether this engine would be vLLM on a GPU of this host."""
    found = vllm_versions.installed()
    return config.kind == "vllm" and has_gpu() and found is not None and not found[1] and config.device != "cpu"


def _transformers() -> Kind:
    try:
        versions = f"transformers {metadata.version('transformers')}, torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError as missing:
        return Kind(name="transformers", ok=False, detail=f"{missing.name} is not installed", cure="run scripts/setup")
    return Kind(name="transformers", ok=True, detail=versions)


def _vllm() -> Kind:
    found = vllm_versions.installed()
    where = "a GPU" if has_gpu() else "this CPU"
    if found is None:
        cure = f"run scripts/setup --vllm, which installs the one for {where}"
        return Kind(name="vllm", ok=False, detail="vLLM is not installed", cure=cure)
    version, cpu = found
    detail = f"vLLM {version} for {'CPUs' if cpu else 'CUDA'}"
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < vllm_versions.OLDEST:
        oldest = ".".join(map(str, vllm_versions.OLDEST))
        return Kind(name="vllm", ok=False, detail=detail, cure=f"install {oldest} or newer: scripts/setup --vllm")
    if not cpu and not has_gpu():
        return Kind(name="vllm", ok=False, detail=f"{detail}, and no GPU is here", cure="run scripts/setup --vllm")
    if cpu and has_gpu():
        detail += "; the GPU here is not used by it"
    return Kind(name="vllm", ok=True, detail=detail)
