"""The engine on transformers: any causal model of a Hugging Face folder, on the CPU or one GPU.

In: an EngineConfig. Out: an `api.Engine`. One thread owns the model and decodes; the event loop only hands over
requests and takes results, so that a slow step never delays an answer, an abort or a new request's place in line.
Leaves batching to batch.py, attention to slots.py, folders to weights.py.

`load` reads files while decoding goes on and swaps the weights between two steps. Requests under way keep their keys
and values and go on with the new weights; each token says by its version which weights sampled it. Newcomers compute
their prompts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from rockroll import units
from rockroll.digest import digest as digest_of
from rockroll.engine import weights
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded, OnTokens, Piece, Stats
from rockroll.engine.batch import Batch
from rockroll.engine.config import EngineConfig
from rockroll.engine.limits import Limits
from rockroll.engine.rows import Sequence
from rockroll.engine.slots import Slots
from rockroll.engine.steady import SteadyBatch, SteadySlots
from rockroll.errors import EngineError

T = TypeVar("T")
_log = logging.getLogger(__name__)
_engines = itertools.count()


class TransformersEngine:
    """Made by `open`; belongs to one event loop. `close` it."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads the model: seconds. Raises EngineError for a folder that holds none, or one that does not run here."""
        self._config = config
        self._model: Any = weights.build(config)
        self._plain: str = self._model.config._attn_implementation
        self._context_length = weights.context_length(self._model.config, config.context_length)
        self._vocab_size = int(self._model.config.get_text_config().vocab_size)
        self._limits = Limits(context_length=self._context_length, vocab_size=self._vocab_size)
        self._stop_ids = weights.stop_ids(self._model.config, self._model.generation_config)
        self._own = f"rockroll_{next(_engines)}"
        self._batch = self._steady(config) if config.deterministic else self._quick(config)
        self._batch.version = config.version
        self._seeds = itertools.count(config.seed << 32)
        self._waiting: dict[Sequence, asyncio.Future[Generation]] = {}  # the decode thread's alone
        self._listening: dict[Sequence, OnTokens] = {}  # the decode thread's alone; who is told each token
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._steps = 0
        self._loading = 0
        self.lost = asyncio.Event()
        """Set when the engine cannot answer any more. Never by this one: its model lives and dies with the process."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._decode, name="decode", daemon=True)

    @classmethod
    async def open(cls, config: EngineConfig) -> TransformersEngine:
        """A running engine. Raises EngineError for a folder that holds no model, or one that does not run here."""
        engine = await asyncio.to_thread(cls, config)
        engine._loop = asyncio.get_running_loop()
        engine._thread.start()
        try:
            await engine._call(engine._check_itself)
        except BaseException:
            await engine.close()
            raise
        return engine

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        """Raises EngineError for a request that cannot be; field `code` is "context_length_exceeded" for a long one."""
        self._limits.check(request)
        sequence = Sequence(request, next(self._seeds) if request.seed is None else request.seed)
        result: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()

        def tell(piece: Piece) -> None:
            if on_tokens is not None and not result.done():
                on_tokens(piece)

        self._post(lambda: self._begin(sequence, result, tell if on_tokens else None))
        try:
            return await result
        except asyncio.CancelledError:
            with contextlib.suppress(EngineError):  # closed meanwhile
                self._post(lambda: self._abort(sequence))
            raise

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        """Raises EngineError, the old weights untouched, for a folder that cannot be read or holds another model."""
        self._loading += 1
        try:
            return await self._load(Path(path), version, digest)
        finally:
            self._loading -= 1

    async def _load(self, folder: Path, version: int, digest: str) -> Loaded:
        delivered = await asyncio.to_thread(weights.read, folder)
        if digest:
            weights.check_digest(folder, await asyncio.to_thread(digest_of, delivered), digest)
        fitted = await asyncio.to_thread(weights.fit, self._model, folder, delivered)

        def swap() -> Loaded:
            begun = time.perf_counter()
            weights.replace(self._model, fitted)
            self._batch.weights_changed(version)
            proof = weights.proof(self._model, delivered, version)
            return msgspec.structs.replace(proof, paused_s=time.perf_counter() - begun)

        return await self._call(swap)

    async def logprobs(self, ids: list[int]) -> list[float]:
        """Computed by the model's own attention over the whole sequence, not by the batch's."""
        self._limits.check_whole(ids)
        return await self._call(lambda: self._full(ids))

    async def info(self) -> EngineInfo:
        return EngineInfo(
            model=self._config.model,
            context_length=self._context_length,
            vocab_size=self._vocab_size,
            version=self._batch.version,
            stop_ids=self._stop_ids,
            pid=os.getpid(),
        )

    def stats(self) -> Stats:
        """Read beside the decode thread, and as true as that."""
        rows, under_way = self._config.max_batch, len(self._waiting) + len(self._inbox)
        return Stats(
            running=min(under_way, rows),
            waiting=max(under_way - rows, 0),
            slots=rows,
            kv_use=self._batch.held / (rows * self._context_length),
            progress=self._steps,
            loading=self._loading > 0,
        )

    async def close(self) -> None:
        """Requests under way end with "abort" and what they have."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _post(self, work: Callable[[], None]) -> None:
        """Have the decode thread do this before its next step."""
        with self._wake:
            if self._closing:
                raise EngineError("the engine is closed; open another")
            self._inbox.append(work)
            self._wake.notify()

    async def _call(self, work: Callable[[], T]) -> T:
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run() -> None:
            try:
                done = work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
                self._settle([(result, None, error)])
            else:
                self._settle([(result, done, None)])

        self._post(run)
        return await result

    # ---- the decode thread ----

    def _decode(self) -> None:
        torch.set_num_threads(self._config.threads)  # counts for the thread that calls it
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not (self._inbox or self._closing or self._batch.busy):
                        self._wake.wait()
                    work = list(self._inbox)
                    self._inbox.clear()
                    closing = self._closing
                for item in work:
                    item()
                if closing:
                    break
                if self._batch.busy:
                    self._step()
            self._settle([(self._taken(s), s.generation("abort"), None) for s in self._batch.drain()])

    def _step(self) -> None:
        self._steps += 1
        try:
            finished = self._batch.step()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            _log.exception("a decoding step failed")
            cause = error if isinstance(error, EngineError) else EngineError(f"a decoding step failed: {error}")
            self._settle([(self._taken(sequence), None, cause) for sequence in self._batch.drain()])
            self._batch.weights_changed(
                self._batch.version
            )  # share nothing that the broken step may have left half done
            return
        pieces = [(tell, piece) for s, tell in self._listening.items() if (piece := s.piece())]
        self._settle([(self._taken(s), s.generation(s.ended()), None) for s in finished], pieces)

    def _begin(self, sequence: Sequence, result: asyncio.Future[Generation], tell: OnTokens | None) -> None:
        self._waiting[sequence] = result
        if tell is not None:
            self._listening[sequence] = tell
        self._batch.add(sequence)

    def _taken(self, sequence: Sequence) -> asyncio.Future[Generation]:
        self._listening.pop(sequence, None)
        return self._waiting.pop(sequence)

    def _abort(self, sequence: Sequence) -> None:
        if sequence in self._waiting:
            self._taken(sequence)
            self._batch.abort(sequence)

    def _settle(
        self,
        outcomes: list[tuple[asyncio.Future[Any], Any, Exception | None]],
        pieces: list[tuple[OnTokens, Piece]] = [],  # noqa: B006  never changed
    ) -> None:
        assert self._loop is not None
        if outcomes or pieces:
            self._loop.call_soon_threadsafe(_resolve, outcomes, pieces)

    def _full(self, ids: list[int]) -> list[float]:
        tensor = torch.tensor([ids], device=self._model.device)
        self._model.set_attn_implementation(self._plain)
        try:
            logits = self._model(input_ids=tensor, use_cache=False).logits[0, :-1].float()
        finally:
            self._model.set_attn_implementation(self._own)
        return torch.log_softmax(logits, -1).gather(1, tensor[0, 1:, None]).squeeze(1).tolist()

    def _quick(self, config: EngineConfig) -> Batch:
        slots = Slots()
        self._register(slots)
        return Batch(
            self._model,
            slots,
            max_batch=config.max_batch,
            context_length=self._context_length,
            prefill_tokens=config.prefill_tokens,
            prefix_cache=config.prefix_cache,
            prefix_cache_bytes=units.size(config.prefix_cache_memory),
        )

    def _steady(self, config: EngineConfig) -> SteadyBatch:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch.use_deterministic_algorithms(True, warn_only=self._model.device.type != "cpu")
        slots = SteadySlots(config.max_batch, self._context_length)
        self._register(slots)
        return SteadyBatch(self._model, slots)

    def _register(self, slots: Slots | SteadySlots) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(self._own, slots.attend)
        self._model.set_attn_implementation(self._own)
        if self._model.config._attn_implementation != self._own:
            raise EngineError(
                f"{type(self._model).__name__} does not use transformers' AttentionInterface, which this engine's "
                "batching is built on; use a model that does (Llama, Qwen, Mistral, SmolLM, GPT-2, …)"
            )

    def _check_itself(self) -> None:
        """The batch's attention against the model's own: a model with state of another kind is refused, not garbled."""
        prompt = [i % self._vocab_size for i in range(3, min(27, self._context_length - 4))]
        request = GenerateRequest(id="check", prompt_ids=prompt, max_tokens=4, temperature=0.0)
        sequence = Sequence(request, 0)
        self._batch.add(sequence)
        started = time.perf_counter()
        try:
            while not self._batch.step():
                pass
        finally:
            self._batch.drain()
        plain = self._full(sequence.ids)[len(prompt) - 1 :]
        apart = max(abs(a - b) for a, b in zip(plain, sequence.logprobs, strict=True))
        _log.info("self-check: log-probs %.1e apart, %.3f s", apart, time.perf_counter() - started)
        if not apart <= (1e-2 if self._config.dtype == "float32" else 0.5):
            raise EngineError(
                f"{type(self._model).__name__} gives log-probs in a batch that are {apart:.3f} from those of one full "
                "forward: this engine cannot run it; use a model with plain attention (Llama, Qwen, Mistral, …)"
            )


def _resolve(
    outcomes: list[tuple[asyncio.Future[Any], Any, Exception | None]], pieces: list[tuple[OnTokens, Piece]]
) -> None:
    for tell, piece in pieces:  # before the results: whoever listens has every token when the call returns
        tell(piece)
    for future, result, error in outcomes:
        if future.done():  # its caller was cancelled
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
