"""Several engine processes as one `Engine`, which outlives any of them.

In: a way to start a replica's process, and requests. Out: answers, whichever replica gave them. A replica that dies is
replaced and has the current weights, proved, before its first request; what it had under way is asked again of another
with the same seed. Leaves where a request goes to placing.py and routing.py, the proof to proving.py, what is taken for
dead to health.py, and processes to placement.

    a replica   starting ──► current weights ──► serving ──► dead ──► starting …     `restarts` times, then gone
    a request   held while all are full ──► at a replica ──► answered
                          └──────── the replica died ◄─┘

With one replica nothing is held, recorded or copied.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded, OnTokens, Stats
from rockroll.engine.client import EngineClient
from rockroll.engine.health import Health
from rockroll.engine.placing import Placing
from rockroll.engine.proving import Weights, agreed, at_fault, proved
from rockroll.engine.replica import Connect, Life, Start, cause, is_death
from rockroll.engine.retold import Retold
from rockroll.errors import CanaryError, EngineError, HostError, PeerLost, RockrollError

MOST_REISSUES = 2
"""A request that was with so many and one more replicas when they died is likely to be what killed them."""
NEXT_S = 120.0
"""A replacement that finds other weights in the folder than those it is to load has come in between two deliveries; so
long it waits for the second."""
_EXPLAIN_S = 2.0  # a broken connection is heard of before the death behind it
_log = logging.getLogger(__name__)


class EnginePool:
    """Replicas that begin to load their model at once: the first call waits for them. Belongs to the event loop that it
    is made in. `close` it."""

    def __init__(
        self,
        start: Start,
        replicas: int,
        *,
        restarts: int,
        seed: int = 0,
        on_end: Callable[[RockrollError], None] = lambda _: None,
        health: Callable[[], Health] = Health,
        connect: Connect = EngineClient.connect,
    ) -> None:
        """start: of a process. restarts: how often each replica is replaced. seed: for requests without one. on_end:
        told of the death after which no replica is left, and of the one of a replica that has never served. connect: to
        the address that `start` gave."""
        self._start, self._restarts_each, self._on_end, self._health = start, restarts, on_end, health
        self._connect = connect
        self._seeds = itertools.count(seed << 32)
        self._placing = Placing()
        self._weights: Weights | None = None
        self._changed = asyncio.Condition()
        """Told when a replica serves or is gone, when weights come, and when a request has ended."""
        self._over: RockrollError | None = None
        """Why nothing is answered any more."""
        self._telling: set[asyncio.Task[None]] = set()
        self._reissued = self._restarts = 0
        self._paused_s = 0.0
        self._starting = set(range(replicas))
        """Those that have not served yet."""
        self._gone: set[int] = set()
        """Those that are replaced no more."""
        self._slots = [asyncio.ensure_future(self._slot(number)) for number in range(replicas)]

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        """As `Engine`. A request whose replica dies is asked again from its start; tokens are told once, but for those
        of a request that may begin anew anyway."""
        if request.seed is None:  # two replicas must not draw the same, nor a second attempt otherwise than the first
            request = msgspec.structs.replace(request, seed=next(self._seeds))
        retold = Retold(request.id, on_tokens) if on_tokens and not request.anew else None
        for attempt in itertools.count():
            life = await self._place(request.prompt_ids)
            answer: list[int] = []
            try:
                got = await life.client.generate(request, retold.begin() if retold else on_tokens)
                answer = got.token_ids
                if retold:
                    retold.finish(got)
                return got
            except RockrollError as error:
                if not is_death(error):
                    raise
                self._lost(life, error)
                if attempt == MOST_REISSUES:
                    raise EngineError(
                        f"request {request.id} was with {attempt + 1} engine replicas when they died, the last of them "
                        f"{life.name}: {error}"
                    ) from error
            finally:
                self._ended(life, request.prompt_ids, answer)
            self._reissued += 1
        raise AssertionError("itertools.count has no end")

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        """Every replica takes the weights at once and proves them. One that fails is asked again, then replaced.

        Raises CanaryError, naming replica, version and value, where that does not help or the folder itself is wrong;
        EngineError for a version older than the one in use.
        """
        before, weights = self._weights, Weights(path, version, digest)
        weights.check_newer(before)
        await self._any()
        self._weights = weights
        self._placing.routes.weights_changed()
        self._tell()
        try:
            # also where one fails: none may still be taking these weights when the next ones come
            ended = await asyncio.gather(
                *(self._deliver(life, weights) for life in self._placing.serving.values()), return_exceptions=True
            )
            loaded = [proof for proof in ended if not isinstance(proof, BaseException)]
            for failed in ended:
                if isinstance(failed, BaseException):
                    raise failed
        except BaseException:
            self._weights = before
            raise
        proofs = [proof for proof in loaded if proof is not None]
        if not proofs:
            return await self.load(path, version, digest)
        agreed(proofs, version)
        self._paused_s = max(proof.paused_s for proof in proofs)
        return min(proofs, key=lambda proof: proof.held)

    async def logprobs(self, ids: list[int]) -> list[float]:
        return next(iter((await self.logprobs_of_each(ids, 1)).values()))

    async def logprobs_of_each(self, ids: list[int], most: int | None = None) -> dict[str, list[float]]:
        """What every replica says of `ids`, by its name; at least one does. One that dies meanwhile is left out."""
        while True:
            await self._any()
            lives = list(self._placing.serving.values())[:most]
            asked = await asyncio.gather(*(self._scored(life, ids) for life in lives))
            if said := {life.name: one for life, one in zip(lives, asked, strict=True) if one is not None}:
                return said

    async def info(self) -> EngineInfo:
        """Waits until every replica has started once."""
        await self._until(lambda: not self._starting)
        while True:
            await self._any()
            life = next(iter(self._placing.serving.values()))
            try:
                return await life.client.info()
            except RockrollError as error:
                if not is_death(error):
                    raise
                self._lost(life, error)

    def counts(self) -> dict[str, float]:
        """How the replicas are, as metrics."""
        return {
            "engine/replicas": len(self._placing.serving),
            "engine/restarts": self._restarts,
            "engine/reissued": self._reissued,
            "time/paused_s": self._paused_s,
        }

    def stats(self) -> dict[str, Stats]:
        """What each replica that serves has said last of its work, by name."""
        said = {life.name: self._placing.routes.stats(number) for number, life in self._placing.serving.items()}
        return {name: stats for name, stats in said.items() if stats is not None}

    async def drain(self) -> None:
        """Refuses new requests and waits for those that were taken."""
        self._over = self._over or EngineError("the engine is about to end and takes no more requests")
        async with self._changed:
            await self._changed.wait_for(lambda: self._placing.idle)

    async def close(self) -> None:
        """Ends every call; ending the processes is placement's."""
        await self._end(EngineError("the engine is closed; open another"))
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, *self._telling, return_exceptions=True)

    # ---- requests ----

    async def _place(self, ids: list[int]) -> Life:
        if self._over is not None:
            raise self._over
        try:
            return await self._placing.begin(ids)
        except asyncio.CancelledError:
            self._told_idle()
            raise

    def _ended(self, life: Life, ids: list[int], answer: list[int]) -> None:
        self._placing.end(life, ids, answer)
        self._told_idle()

    def _told_idle(self) -> None:
        """`drain` looks again, where it may wait for this."""
        if self._over is not None and self._placing.idle:
            self._tell()

    def _lost(self, life: Life, error: RockrollError) -> None:
        """It gets no more requests, and is replaced."""
        life.end(error)
        self._placing.remove(life)

    async def _scored(self, life: Life, ids: list[int]) -> list[float] | None:
        try:
            return await life.client.logprobs(ids)
        except RockrollError as error:
            if not is_death(error):
                raise
            self._lost(life, error)
            return None

    # ---- weights ----

    async def _deliver(self, life: Life, weights: Weights) -> Loaded | None:
        """To a serving replica, twice if need be; its replacement's turn comes in `_bring_up`. None: it died, and its
        replacement proves itself before it serves."""
        error: RockrollError | None = None
        for _ in range(2):
            try:
                return await proved(life, weights)
            except RockrollError as failed:
                error = failed
                if is_death(failed):
                    break
        assert error is not None
        fault = at_fault(error)
        if fault == "bits":
            raise CanaryError(f"{life.name} refused version {weights.version} of the weights: {error}") from error
        if fault == "folder":
            raise error  # no other process would do better
        _log.warning("%s did not take version %d and is replaced: %s", life.name, weights.version, error)
        dead = is_death(error)
        self._lost(life, error if dead else EngineError(f"{life.name} did not take new weights: {error}"))
        if not dead:
            await self._until(lambda: life.number in self._placing.serving or life.number in self._gone)
        return None

    async def _bring_up(self, life: Life, health: Health) -> None:
        """The current weights, proved; those that came meanwhile, too. Then it serves."""
        has: Weights | None = None
        while (weights := self._weights) is not has:
            assert weights is not None
            try:
                async with asyncio.timeout(health.loading_s):
                    await proved(life, weights)
                has = weights
            except EngineError as error:
                if is_death(error):
                    raise
                async with asyncio.timeout(NEXT_S):  # the folder holds the next weights already, which are on their way
                    await self._until(lambda weights=weights: self._weights is not weights)
        self._starting.discard(life.number)
        self._placing.add(life)
        self._tell()

    # ---- replicas ----

    async def _slot(self, number: int) -> None:
        """A replica's lives, one after the other."""
        name, replaced = f"engine-{number}", 0
        for attempt in itertools.count():
            try:
                error = await self._live(number, name, attempt)
            except HostError as failed:  # it has no place any more
                await self._give_up(number, failed)
                return
            except Exception as failed:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                error = EngineError(f"{name} cannot be started: {type(failed).__name__}: {failed}")
            if error.fields.get("cause") == "drained":  # nothing is wrong with it
                _log.warning("%s goes to another node: %s", name, error)
                continue
            # a CanaryError is of a replacement: the weights do not arrive in a new process either
            if isinstance(error, CanaryError) or number in self._starting:
                await self._end(error, told=True)
            elif replaced < self._restarts_each:
                replaced += 1
                self._restarts += 1
                _log.warning("%s is replaced, %d of %d: %s", name, replaced, self._restarts_each, error)
                continue
            else:
                await self._give_up(number, error)
            return

    async def _give_up(self, number: int, error: RockrollError) -> None:
        """A replica that is not replaced: the run goes on with the others, if there are any."""
        never = number in self._starting
        if never or (
            not self._placing.serving and all(slot.done() for n, slot in enumerate(self._slots) if n != number)
        ):
            await self._end(error, told=True)
        else:
            _log.warning("engine-%d is gone, the run goes on without it: %s", number, error)
            self._gone.add(number)
            self._tell()

    async def _live(self, number: int, name: str, attempt: int) -> RockrollError:
        """One process from its start to its death; returns of what."""
        died: asyncio.Future[RockrollError] = asyncio.get_running_loop().create_future()
        told: asyncio.Future[RockrollError] = asyncio.get_running_loop().create_future()

        def on_death(error: RockrollError) -> None:
            if not told.done():
                told.set_result(error)
            if not died.done():
                died.set_result(error)

        address, process = await self._start(name, attempt, on_death)
        try:
            client = await self._connect(address)
        except Exception:
            await process.stop()  # the next attempt starts another, and this one would load its model for nobody
            raise
        life = Life(number, name, client, died)
        working = asyncio.ensure_future(self._work(life))
        try:
            await asyncio.wait([working, died], return_when=asyncio.FIRST_COMPLETED)
            error = died.result() if died.done() else cause(working, name)
            if isinstance(error, PeerLost):
                await asyncio.wait([told], timeout=_EXPLAIN_S)
        finally:
            self._placing.remove(life)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            client.fail(PeerLost(f"{name} is gone"))
            await client.close()
        await process.stop()
        return told.result() if told.done() and isinstance(error, PeerLost) else error

    async def _work(self, life: Life) -> None:
        """Serves; raises what it is to be replaced for."""
        health, loop = self._health(), asyncio.get_running_loop()
        async with asyncio.timeout(health.starting_s):
            await life.client.info()
        await self._bring_up(life, health)
        async with aclosing(life.client.pulse()) as pulses:
            while True:
                async with asyncio.timeout(health.silent_s):
                    stats = await anext(pulses)
                self._placing.routes.reported(life.number, stats)
                if why := health.heard(loop.time(), stats):
                    raise EngineError(f"{life.name} {why}")
                self._placing.let_go()

    async def _end(self, error: RockrollError, told: bool = False) -> None:
        """No more requests; those that wait are told."""
        if self._over is None:
            line = error.message.splitlines()[0]
            self._over = error if not told else EngineError(f"no engine replica is left to answer: {line}")
            if isinstance(error, CanaryError):
                self._over = error
        self._placing.refuse(self._over)
        if told:
            self._on_end(error)
        async with self._changed:
            self._changed.notify_all()

    async def _any(self) -> None:
        """Returns when a replica serves."""
        await self._until(lambda: bool(self._placing.serving))

    async def _until(self, so: Callable[[], bool]) -> None:
        """Raises where nothing is to be hoped for any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: so() or self._over is not None)
        if not so():
            assert self._over is not None
            raise self._over

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
