"""The engine on vLLM: paged attention, CUDA graphs on a GPU, the same promises as `transformers`.

In: an EngineConfig. Out: an `api.Engine`. The model is in vLLM's own processes; here requests go out and tokens come
in. Leaves what one request has got so far to vllm_request.py, what vLLM's releases do differently to
vllm_versions.py, reading weights to vllm_worker.py.

    load: read the headers ─► pause, forgetting all keys and values ─► fence ─► new weights ─► proof ─► resume
                └ refused, nothing has changed                                     └ failed: broken until a load works

Requests under way go on after a load, as if their prompt and what they had were a new prompt: nothing that older
weights computed is read again. Each token says by its version which weights sampled it. Those that are to begin anew
are withdrawn before the pause and sent again after it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from rockroll.digest import fold
from rockroll.engine import vllm_versions, weights
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded, OnTokens, Stats
from rockroll.engine.config import EngineConfig
from rockroll.engine.limits import Limits
from rockroll.engine.vllm_request import Request, Scored
from rockroll.errors import EngineError

_log = logging.getLogger(__name__)
_LEAST_TEMPERATURE = 0.01
"""vLLM samples at 0.01 what is asked for at less: the log-probs would not be those that were asked for."""
_LEAST_HEAD = 32
"""Smaller ones start, and kill vLLM's CPU worker at the first request."""
_CLOSING_S = 3
"""vLLM's processes have this long to end by themselves."""


class VllmEngine:
    """Made by `open`; belongs to one event loop. `close` it."""

    def __init__(self, config: EngineConfig, llm: Any, model: Any, limits: Limits, stop_ids: list[int]) -> None:
        self._config, self._llm, self._model, self._limits, self._stop_ids = config, llm, model, limits, stop_ids
        self._fence = vllm_versions.Fence(llm)
        self._version = config.version
        self._tensors = weights.shapes(Path(config.model))
        self._numbers = itertools.count()
        self._under_way: set[Request] = set()
        self._anew: set[asyncio.Future[None]] = set()
        """Those of them that a load withdraws."""
        self._loading = asyncio.Lock()
        self._broken = ""
        self._closed = False
        self._tokens = 0
        self.lost = asyncio.Event()
        """Set when a process of vLLM has died: the engine cannot answer any more."""
        self._watched = [os.pidfd_open(pid) for pid in vllm_versions.core_pids(llm)]
        for pidfd in self._watched:
            asyncio.get_running_loop().add_reader(pidfd, self._died)

    @classmethod
    async def open(cls, config: EngineConfig) -> VllmEngine:
        """A running engine: 10 s to over a minute. EngineError for a folder without a model, or one vLLM refuses."""
        found = vllm_versions.installed()
        if found is None:
            raise EngineError("engine kind is vllm, which is not installed; run scripts/setup --vllm")
        _, cpu = found
        if cpu and config.device.startswith("cuda"):
            raise EngineError(
                f"engine device is {config.device}, but the vLLM here is built for CPUs; set device: auto"
            )
        folder = Path(config.model)
        weights.check(folder)
        weights.shapes(folder)
        model, generation = await asyncio.to_thread(_describe, folder)
        context = weights.context_length(model, config.context_length)
        text = model.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        if cpu and head < _LEAST_HEAD:
            raise EngineError(
                f"{folder} has attention heads of {head}, vLLM's on a CPU have at least {_LEAST_HEAD}; use "
                "engine.kind transformers"
            )
        started = time.perf_counter()
        try:
            llm = await asyncio.to_thread(vllm_versions.start, config, context, cpu)
        except Exception as error:
            raise EngineError(
                f"vLLM {found[0]} does not start with {folder}: {_line(error)}; what its processes said is above"
            ) from error
        _log.info("vLLM %s on %s after %.1f s", found[0], "CPU" if cpu else "CUDA", time.perf_counter() - started)
        limits = Limits(context_length=context, vocab_size=int(model.get_text_config().vocab_size))
        return cls(config, llm, model, limits, weights.stop_ids(model, generation))

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        """Raises EngineError for a request that cannot be; field `code` is "context_length_exceeded" for a long one."""
        self._limits.check(request)
        if 0 < request.temperature < _LEAST_TEMPERATURE:
            raise EngineError(
                f"temperature is 0 (greedy) or at least {_LEAST_TEMPERATURE} with vLLM, which would silently sample at "
                f"{_LEAST_TEMPERATURE}; got {request.temperature}"
            )
        params, thrown = vllm_versions.sampling(request), 0
        while request.anew:
            async with self._loading:  # in turn: a load that is under way ends before it begins
                pass
            live = Request(request, on_tokens, self._version)
            if await self._until_load(live, params):
                return msgspec.structs.replace(live.generation(), thrown=thrown)
            thrown += live.sampled
        live = Request(request, on_tokens, self._version)
        await self._run(live, params)
        return live.generation()

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        """EngineError for a folder that cannot be read or holds another model, the old weights untouched; or for a load
        that failed half-way: until another one works, every request is refused."""
        folder = Path(path)
        self._must_live()
        self._check_same(folder, await asyncio.to_thread(weights.shapes, folder))
        async with self._loading:
            for running in self._anew:
                running.cancel()
            await asyncio.gather(*self._anew, return_exceptions=True)
            try:
                await self._or_lost(self._llm.pause_generation(mode="keep", clear_cache=True))
                paused = time.perf_counter()  # the steps under way have ended, and their tokens count
                if self._under_way:
                    await self._or_lost(self._fence.passed())
                for live in self._under_way:
                    live.take_waiting()
                loaded = await self._swap(folder, version, digest)
                self._version, self._broken = version, ""
                for live in self._under_way:
                    live.weights_changed(version)
            except BaseException as error:
                self._broken = _line(error)
                if not self.lost.is_set():
                    await asyncio.shield(self._give_up())
                raise
            finally:
                if not self.lost.is_set():
                    await asyncio.shield(self._llm.resume_generation())
            seconds, going_on = time.perf_counter() - paused, len(self._under_way)
            _log.info("version %d after %.3f s, %d requests go on", version, seconds, going_on)
            return msgspec.structs.replace(loaded, paused_s=seconds)

    async def logprobs(self, ids: list[int]) -> list[float]:
        """From one forward over all of `ids`: what earlier requests left in the cache is not read."""
        self._limits.check_whole(ids)
        if len(ids) == 1:
            return []
        scored: list[Any] = []
        live = Scored(GenerateRequest(id="logprobs", prompt_ids=ids, max_tokens=1), scored)
        await self._run(live, vllm_versions.scoring())
        if not scored:
            raise EngineError("vLLM gave no log-probs of a prompt; its log says why")
        return [row[token].logprob for token, row in zip(ids[1:], scored[0][1:], strict=True)]

    async def info(self) -> EngineInfo:
        self._must_live()
        return EngineInfo(
            model=self._config.model,
            context_length=self._limits.context_length,
            vocab_size=self._limits.vocab_size,
            version=self._version,
            stop_ids=self._stop_ids,
            pid=os.getpid(),
        )

    def stats(self) -> Stats:
        """As vLLM's scheduler last said; it says nothing of what it has not got yet, which waits."""
        scheduler, here = self._fence.scheduler, len(self._under_way)
        running = min(scheduler.running, here)
        return Stats(
            running=running,
            waiting=here - running,
            slots=self._config.max_batch,
            kv_use=min(scheduler.kv_use, 1.0) if here else 0.0,
            preemptions=scheduler.preemptions,
            progress=self._tokens,
            loading=self._loading.locked(),
        )

    async def close(self) -> None:
        """Requests under way end with "abort" and what they have; vLLM's processes end."""
        if self._closed:
            return
        self._closed = True
        for pidfd in self._watched:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        if not self.lost.is_set():
            await self._give_up()
        await asyncio.to_thread(self._llm.shutdown, _CLOSING_S)

    async def _until_load(self, live: Request, params: Any) -> bool:
        """Runs it; whether it came to its end before a load withdrew it."""
        running = asyncio.ensure_future(self._run(live, params))
        self._anew.add(running)
        try:
            await asyncio.wait([running])
            if running.cancelled():
                return False
            running.result()
            return True
        finally:  # also where the caller is gone
            self._anew.discard(running)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self, live: Request, params: Any) -> None:
        """To its end. Cancelling it aborts the request in vLLM."""
        self._must_live()
        if self._broken:
            raise self._refusal()
        self._under_way.add(live)
        try:
            name = f"{live.wanted.id}-{next(self._numbers)}"
            prompt = {"prompt_token_ids": live.wanted.prompt_ids}
            adding = asyncio.ensure_future(self._llm.add_request(name, prompt, params))
            try:
                live.collector = await asyncio.shield(adding)
                while live.finish_reason is None:
                    output = await live.collector.get()
                    self._tokens += 1
                    if live.finish_reason is None:
                        live.take(output)
            except asyncio.CancelledError:
                await asyncio.shield(self._withdraw(live, adding))
                raise
        except EngineError:
            raise
        except Exception as error:
            if self._llm.errored:
                raise _dead() from error
            raise EngineError(f"vLLM refused request {live.wanted.id}: {_line(error)}") from error
        finally:
            self._under_way.discard(live)
        if live.finish_reason not in ("stop", "length"):
            if self._broken:
                raise self._refusal()
            if self.lost.is_set():
                raise _dead()
            if live.finish_reason != "abort":
                raise EngineError(f"vLLM gave request {live.wanted.id} up: {live.finish_reason}; its log says why")

    async def _abort(self, requests: list[Request]) -> None:
        for live in requests:
            if live.collector is not None and live.finish_reason is None:
                await self._llm.abort(live.collector.request_id, internal=True)

    async def _withdraw(self, live: Request, adding: asyncio.Future[Any]) -> None:
        """Abort a request whose caller is gone, also one that is only on its way to vLLM."""
        live.collector = await adding
        if not self._closed:
            await self._abort([live])

    async def _give_up(self) -> None:
        await self._abort(list(self._under_way))

    async def _swap(self, folder: Path, version: int, expected: str) -> Loaded:
        """The new weights in place of the old, and the proof of it."""
        try:
            reports = await self._or_lost(self._llm.collective_rpc("rockroll_load", args=(str(folder),)))
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"the weights of {folder} cannot be loaded into vLLM: {_line(error)}") from error
        report = reports[0]
        if report["wrong"]:
            raise EngineError(
                f"after loading {folder} the engine's {report['wrong']} holds other bits than were read for it; "
                "deliver the weights again, or replace this engine",
                code="held_wrong",
            )
        read = report["read"]
        digest = fold({name: (dtype, shape, total) for name, dtype, shape, total in read})
        if expected:
            weights.check_digest(folder, digest, expected)
        return Loaded(version=version, tensors=len(read), digest=digest, held=report["held"])

    def _check_same(self, folder: Path, tensors: dict[str, list[int]]) -> None:
        """EngineError where the folder holds other tensors than the model was started with."""
        tied = {"lm_head.weight"} if getattr(self._model, "tie_word_embeddings", False) else set()
        for name in sorted((tensors.keys() ^ self._tensors.keys()) - tied):
            raise EngineError(f"{folder} holds another model: {name} is in only one of the two; export the same model")
        for name, shape in tensors.items():
            own = self._tensors.get(name, shape)
            if shape != own:
                raise EngineError(
                    f"{folder} holds another model: {name} is {shape}, the engine has {own}; export the same model"
                )

    async def _or_lost(self, work: Any) -> Any:
        """The outcome of `work`, unless a process of vLLM dies first: then nothing would ever answer."""
        working, losing = asyncio.ensure_future(work), asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait([working, losing], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise _dead()
            return working.result()
        finally:
            losing.cancel()
            working.cancel()

    def _died(self) -> None:
        for pidfd in self._watched:
            asyncio.get_running_loop().remove_reader(pidfd)
        self.lost.set()

    def _must_live(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; open another")
        if self.lost.is_set():
            raise _dead()

    def _refusal(self) -> EngineError:
        return EngineError(
            f"this engine serves nothing until weights are delivered whole; the last load: {self._broken}"
        )


def _describe(folder: Path) -> tuple[Any, Any]:
    """The model's configuration, and that of its generation or None."""
    from transformers import AutoConfig, GenerationConfig

    try:
        model = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise EngineError(f"{folder} holds no model that can be loaded: {_line(error)}") from error
    try:
        return model, GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, json.JSONDecodeError):
        return model, None


def _dead() -> EngineError:
    return EngineError("a process of vLLM died, and with it this engine; its log says why", code="engine_died")


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if isinstance(error, EngineError) else f"{type(error).__name__}: {text[:300]}"
