"""How an engine process is made.

In: the recipe's `engine` section, or JSON for the server. Out: a checked EngineConfig. Leaves reading the model's
own files (is it there, what is its context) to the engine, which alone knows the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rockroll import units


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    kind: Literal["transformers", "vllm"] = "transformers"
    """Which engine: `transformers`, or `vllm`, which scripts/setup --vllm installs (docs/engines.md)."""
    model: str = ""
    """A Hugging Face folder: config.json, model.safetensors and a tokenizer."""
    address: str = ""
    """Where the server listens, as `rpc` writes addresses: ipc://PATH, unix://PATH or tcp://HOST:PORT."""
    key: str = ""
    """The file of the key of a tcp address."""
    replicas: int = 1
    """Engines with the same weights, each a process of its own with `threads`, `max_batch` and memory of its own."""
    restarts: int = 3
    """How often each replica is replaced when it dies. The run ends with the first death of all that are left."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`; `auto` is cuda where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and cache. Log-probs are float32 in any case."""
    threads: int = 1
    """CPU threads of the forward pass."""
    max_batch: int = 64
    """Requests decoded together; more wait in the order they came."""
    prefill_tokens: int = 512
    """Prompt tokens computed in one step, at most: longer prompts take several, so that decoding is not held up."""
    context_length: int = 0
    """Prompt and new tokens together, at most. 0: what the model's config says."""
    prefix_cache: int = 64
    """Finished requests whose cache is kept for a next turn with the same beginning. 0: none. For vllm, which keeps
    what its memory holds, anything over 0 only switches it on."""
    prefix_cache_memory: str = "1g"
    """What those may take together; the longest unused go first. transformers only."""
    memory: str = "auto"
    """vllm only: what keys and values may take, those kept for later included, such as 2g. `auto`: 2g on a CPU, on a
    GPU what gpu_share leaves beside the weights, or what is computed."""
    gpu_share: float | None = None
    """vllm on a GPU only: the part of the GPU's memory that the engine may take. Unset: computed from the model, beside
    what the trainer needs (`rockroll plan` shows it)."""
    compile: bool | None = None
    """vllm only: compile the model at start and use CUDA graphs. Unset: on a GPU (a minute at start, and nine times the
    speed for one stream), not on a CPU."""
    seed: int = 0
    """Seeds the requests that bring no seed of their own."""
    version: int = 0
    """The version of the weights found at start."""
    deterministic: bool = False
    """What a request gets depends on no other request, to the last bit: slower, and nothing is shared between them."""

    def __post_init__(self) -> None:
        units.size(self.prefix_cache_memory)
        if self.memory != "auto":
            units.size(self.memory)
        if self.gpu_share is not None and not 0 < self.gpu_share <= 1:
            raise ValueError(f"engine gpu_share is over 0 and at most 1; got {self.gpu_share}")
        least = {"threads": 1, "max_batch": 1, "prefill_tokens": 1, "context_length": 0, "prefix_cache": 0}
        least |= {"replicas": 1, "restarts": 0}
        for name, at_least in least.items():
            if getattr(self, name) < at_least:
                raise ValueError(f"engine {name} must be at least {at_least}; got {getattr(self, name)}")
        share = self.gpu_share or 0.0
        if self.kind == "vllm" and self.device.startswith("cuda") and self.replicas * share > 1:
            raise ValueError(
                f"engine replicas {self.replicas} with gpu_share {self.gpu_share} each are more than the whole of "
                f"{self.device}; set gpu_share to at most {1 / self.replicas:.2f}"
            )
        if self.deterministic and self.threads != 1:
            raise ValueError(
                f"engine threads must be 1 where the run is deterministic: more of them divide sums by how many there "
                f"are and what else runs; got {self.threads}"
            )
        if self.device != "auto" and self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"engine device is auto, cpu, cuda or cuda:N; got {self.device!r}")
