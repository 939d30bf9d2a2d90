"""What the pool does with replicas that are full, die, fall silent or do not take their weights.

The engines here have no model, so that each fault comes when it is wanted; servers, links and pool are real.
test_replicas.py has the same with processes and models.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rockroll import rpc
from rockroll.engine import server as server_module
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded, OnTokens, Piece, Stats
from rockroll.engine.client import EngineClient
from rockroll.engine.health import Health
from rockroll.engine.pool import EnginePool
from rockroll.engine.replica import OnDeath
from rockroll.engine.server import _handlers, _Load
from rockroll.errors import CanaryError, EngineError, ProcessDied, RockrollError


class Model:
    """An engine whose tokens follow from seed and version; `loaded` is told what it does with new weights."""

    def __init__(self, name: str) -> None:
        self.name, self.version, self.running, self.steps = name, 0, 0, 0
        self.slots = 64
        self.served: list[str] = []
        self.asked: list[tuple[int, str]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.on_load: Callable[[int, str], Loaded | None] = lambda version, digest: None

    async def generate(self, request: GenerateRequest, on_tokens: OnTokens | None = None) -> Generation:
        self.running += 1
        self.served.append(request.id)
        ids: list[int] = []
        try:
            assert request.seed is not None
            for i in range(request.max_tokens):
                if i == 2:
                    await self.go.wait()
                self.steps += 1
                ids.append((request.seed * 31 + i + 100 * self.version) % 997)
                if on_tokens is not None:
                    on_tokens(Piece(start=i, token_ids=ids[-1:], logprobs=[-1.0], versions=[self.version]))
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        ones = [-1.0] * len(ids)
        return Generation(token_ids=ids, logprobs=ones, versions=[self.version] * len(ids), finish_reason="length")

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        self.asked.append((version, digest))
        if (said := self.on_load(version, digest)) is not None:
            return said
        found = Path(path).read_text()
        if digest and found != digest:
            raise EngineError(f"{path} holds digest {found}", code="wrong_weights")
        self.version = version
        return Loaded(version=version, tensors=1, digest=found, held=1)

    async def logprobs(self, ids: list[int]) -> list[float]:
        return [-float(self.version)] * (len(ids) - 1)

    async def info(self) -> EngineInfo:
        return EngineInfo(
            model="m", context_length=64, vocab_size=997, version=self.version, stop_ids=[], pid=len(self.name)
        )

    def stats(self) -> Stats:
        running = min(self.running, self.slots)
        waiting = self.running - running
        return Stats(running=running, waiting=waiting, slots=self.slots, kv_use=0.0, progress=self.steps, loading=False)


class Replica:
    def __init__(self, model: Model, server: rpc.Server, on_death: OnDeath) -> None:
        self.model, self._server, self._on_death = model, server, on_death
        self.stopped = False

    async def die(self, **fields: str) -> None:
        await self._server.close()
        said = f"the {self.model.name} process was killed by SIGKILL"
        self._on_death(ProcessDied(said, name=self.model.name, **fields))

    async def stop(self) -> None:
        self.stopped = True
        await self._server.close()


class Place:
    """Where the replicas of a test run: `lives[n]` are those of engine-n, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lives = folder, {}
        self.ended: list[RockrollError] = []
        self.prepare: Callable[[Model, int], None] = lambda model, attempt: None

    async def start(self, name: str, attempt: int, on_death: OnDeath) -> tuple[str, Replica]:
        model = Model(name)
        self.prepare(model, attempt)
        address = f"ipc://{self.folder}/{name}.{attempt}"
        types = {"generate": GenerateRequest, "generate.stream": GenerateRequest, "load": _Load}
        server = rpc.Server(address, _handlers(model), types=types)
        await server.start()
        replica = Replica(model, server, on_death)
        self.lives.setdefault(int(name.removeprefix("engine-")), []).append(replica)
        return address, replica

    def model(self, number: int) -> Model:
        return self.lives[number][-1].model

    def weights(self, text: str) -> str:
        (self.folder / "weights").write_text(text)
        return str(self.folder / "weights")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@asynccontextmanager
async def running(place: Place, replicas: int = 2, restarts: int = 3, **options: Any) -> AsyncIterator[EnginePool]:
    pool = EnginePool(place.start, replicas, restarts=restarts, on_end=place.ended.append, **options)
    try:
        async with asyncio.timeout(20):
            await pool.info()
            yield pool
    finally:
        await pool.close()
        for lives in place.lives.values():
            for replica in lives:
                await replica.stop()


def request(n: int, tokens: int = 5, seed: int | None = None) -> GenerateRequest:
    return GenerateRequest(id=f"r{n}", prompt_ids=[n, n + 1], max_tokens=tokens, seed=n if seed is None else seed)


async def until(so: Callable[[], bool]) -> None:
    while not so():
        await asyncio.sleep(0.01)


async def test_requests_are_shared_out_and_all_answered(place: Place) -> None:
    async with running(place) as pool:
        got = await asyncio.gather(*(pool.generate(request(n)) for n in range(10)))
        assert [one.token_ids[0] for one in got] == [n * 31 for n in range(10)]
        assert len(place.model(0).served) == len(place.model(1).served) == 5
        assert pool.counts() == {
            "engine/replicas": 2,
            "engine/restarts": 0,
            "engine/reissued": 0,
            "time/paused_s": 0.0,
        }


async def test_a_dead_replicas_requests_are_answered_elsewhere_as_they_would_have_been(place: Place) -> None:
    async with running(place) as pool:
        for number in (0, 1):
            place.model(number).go.clear()
        told: dict[int, list[int]] = {n: [] for n in range(6)}
        asked = [
            asyncio.ensure_future(pool.generate(request(n), lambda piece, n=n: told[n].extend(piece.token_ids)))
            for n in range(6)
        ]
        await until(lambda: all(len(tokens) == 2 for tokens in told.values()))
        await place.lives[0][0].die()
        place.model(1).go.set()
        got = await asyncio.gather(*asked)
        assert [one.token_ids for one in got] == [[n * 31 + i for i in range(5)] for n in range(6)]
        assert [told[n] for n in range(6)] == [one.token_ids for one in got], "each token is told once"
        await until(lambda: pool.counts()["engine/replicas"] == 2)
        assert pool.counts() == {
            "engine/replicas": 2,
            "engine/restarts": 1,
            "engine/reissued": 3,
            "time/paused_s": 0.0,
        }


async def test_a_replacement_has_the_current_weights_before_its_first_request(place: Place) -> None:
    async with running(place, replicas=1) as pool:
        await pool.load(place.weights("two"), 2, "two")
        place.model(0).go.clear()
        asked = asyncio.ensure_future(pool.generate(request(1)))
        await until(lambda: place.model(0).running == 1)
        await place.lives[0][0].die()
        assert set((await asked).versions) == {2}
        assert place.model(0).asked == [(2, "two")]
        assert [len(lives) for lives in place.lives.values()] == [2]


async def test_an_answer_that_would_go_on_otherwise_than_it_was_told_fails_typed(place: Place) -> None:
    async with running(place) as pool:
        for number in (0, 1):
            place.model(number).go.clear()
        told: list[int] = []
        asked = asyncio.ensure_future(pool.generate(request(1), lambda piece: told.extend(piece.token_ids)))
        await until(lambda: len(told) == 2)
        await pool.load(place.weights("two"), 2, "two")
        await next(r for r in (place.lives[0][0], place.lives[1][0]) if r.model.served).die()
        with pytest.raises(EngineError, match="told 2 tokens before its engine died") as caught:
            await asked
        assert caught.value.fields["code"] == "answer_changed"


async def test_what_kills_every_replica_it_comes_to_is_given_up(place: Place) -> None:
    async with running(place) as pool:
        place.prepare = lambda model, attempt: model.go.clear()
        for number in (0, 1):
            place.model(number).go.clear()
        asked = asyncio.ensure_future(pool.generate(request(1)))
        for _ in range(3):
            await until(lambda: any(place.model(n).running for n in (0, 1)))
            await next(place.lives[n][-1] for n in (0, 1) if place.model(n).running).die()
            await until(lambda: not any(place.model(n).running and place.lives[n][-1].stopped for n in (0, 1)))
        with pytest.raises(EngineError, match="was with 3 engine replicas when they died"):
            await asked


async def test_none_left_fails_typed_and_ends_the_run(place: Place) -> None:
    async with running(place, restarts=0) as pool:
        for number in (0, 1):
            place.model(number).go.clear()
        asked = [asyncio.ensure_future(pool.generate(request(n))) for n in range(4)]
        await until(lambda: place.model(0).running == place.model(1).running == 2)
        await place.lives[0][0].die()
        await until(lambda: place.model(1).running == 4)
        assert not place.ended, "one is left"
        await place.lives[1][0].die()
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, EngineError) and "no engine replica is left" in str(outcome)
        assert [type(error) for error in place.ended] == [ProcessDied]
        with pytest.raises(EngineError, match="no engine replica is left"):
            await pool.generate(request(9))


async def test_a_replica_that_leaves_a_drained_node_is_replaced_and_no_restart_is_spent(place: Place) -> None:
    async with running(place, restarts=0) as pool:
        await pool.info()
        place.model(0).go.clear()
        place.model(1).go.clear()
        asked = [asyncio.ensure_future(pool.generate(request(n))) for n in range(2)]
        await until(lambda: place.model(0).running == place.model(1).running == 1)
        place.model(1).go.set()
        await place.lives[0][0].die(cause="drained")
        await until(lambda: len(place.lives[0]) == 2 and pool.counts()["engine/replicas"] == 2)
        assert len(await asyncio.gather(*asked)) == 2
        assert pool.counts()["engine/restarts"] == 0 and not place.ended


async def test_a_replica_that_never_served_ends_the_run_at_once(place: Place) -> None:
    place.prepare = lambda model, attempt: setattr(model, "info", lambda: asyncio.sleep(60))
    pool = EnginePool(place.start, 2, restarts=3, on_end=place.ended.append)
    await until(lambda: len(place.lives) == 2)
    await place.lives[1][0].die()
    with pytest.raises(EngineError, match="no engine replica is left to answer: the engine-1 process was killed"):
        await pool.info()
    assert [type(error) for error in place.ended] == [ProcessDied] and len(place.lives[1]) == 1
    await pool.close()
    for lives in place.lives.values():
        await lives[0].stop()


async def test_a_replica_that_cannot_be_started_ends_the_run(place: Place) -> None:
    def full(model: Model, attempt: int) -> None:
        raise OSError("No space left on device")

    place.prepare = full
    pool = EnginePool(place.start, 2, restarts=3, on_end=place.ended.append)
    with pytest.raises(EngineError, match="engine-0 cannot be started: OSError: No space left"):
        await pool.info()
    assert place.ended
    await pool.close()


async def test_a_process_that_cannot_be_reached_is_ended(place: Place) -> None:
    async def connect(address: str) -> EngineClient:
        raise OSError(f"no way to {address}")

    pool = EnginePool(place.start, 1, restarts=3, on_end=place.ended.append, connect=connect)
    with pytest.raises(EngineError, match="engine-0 cannot be started: OSError: no way to"):
        await pool.info()
    assert place.ended and [replica.stopped for replica in place.lives[0]] == [True]
    await pool.close()


async def test_a_replica_that_does_not_come_to_serve_ends_the_run(place: Place) -> None:
    def asleep(model: Model, attempt: int) -> None:
        async def never() -> EngineInfo:
            return await asyncio.Future()

        model.info = never  # type: ignore[method-assign]

    place.prepare = asleep
    pool = EnginePool(place.start, 1, restarts=3, on_end=place.ended.append, health=lambda: Health(starting_s=0.2))
    with pytest.raises(EngineError, match="engine-0 is silent"):
        await pool.info()
    assert place.lives[0][0].stopped
    await pool.close()


async def test_a_silent_replica_is_replaced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(model: Model, attempt: int) -> None:
        monkeypatch.setattr(server_module, "PULSE_S", 60 if attempt == 0 else 0.1)

    place.prepare = again
    async with running(place, replicas=1, health=lambda: Health(silent_s=0.8)) as pool:
        await until(lambda: len(place.lives[0]) == 2 and pool.counts()["engine/replicas"] == 1)
        assert place.lives[0][0].stopped
        await asyncio.sleep(1)
        assert len(place.lives[0]) == 2, "one that pulses is left alone"


async def test_a_replica_that_cannot_say_how_it_is_is_replaced(place: Place) -> None:
    async with running(place) as pool:
        place.model(1).stats = lambda: 1 / 0  # type: ignore[method-assign, return-value]
        await until(lambda: len(place.lives[1]) == 2 and pool.counts()["engine/replicas"] == 2)
        assert place.lives[1][0].stopped and len(place.lives[0]) == 1


async def test_a_stuck_replica_is_replaced_and_a_busy_one_is_not(place: Place) -> None:
    async with running(place, health=lambda: Health(stuck_s=0.8)) as pool:
        place.model(0).go.clear()
        asked = asyncio.ensure_future(pool.generate(request(1)))
        await asked
        assert place.lives[0][0].stopped and len(place.lives[1]) == 1


async def test_requests_wait_where_all_replicas_are_full_and_go_on_in_their_order(place: Place) -> None:
    def small(model: Model, attempt: int) -> None:
        model.slots = 2

    place.prepare = small
    async with running(place) as pool:
        await until(lambda: all(load.stats for load in pool._placing.routes._loads.values()))
        for number in (0, 1):
            place.model(number).go.clear()
        asked = [asyncio.ensure_future(pool.generate(request(n))) for n in range(8)]
        await until(lambda: place.model(0).running + place.model(1).running == 4)
        await asyncio.sleep(0.05)
        assert len(pool._placing.held) == 4
        asked[5].cancel()
        for number in (0, 1):
            place.model(number).go.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(outcomes[5], asyncio.CancelledError)
        assert sum(isinstance(one, Generation) for one in outcomes) == 7
        assert pool._placing.under_way == 0 and not pool._placing.held
        assert [pool._placing.routes.under_way(n) for n in (0, 1)] == [0, 0]


async def test_every_replica_proves_a_delivery(place: Place) -> None:
    async with running(place, replicas=3) as pool:
        loaded = await pool.load(place.weights("five"), 5, "five")
        assert (loaded.version, loaded.digest) == (5, "five")
        assert [place.model(n).asked for n in range(3)] == [[(5, "five")]] * 3
        assert await pool.logprobs_of_each([1, 2]) == {f"engine-{n}": [-5.0] for n in range(3)}


async def test_a_dropped_delivery_is_caught_and_made_again(place: Place) -> None:
    async with running(place) as pool:
        drops = [Loaded(version=0, tensors=1, digest="old")]
        place.model(1).on_load = lambda version, digest: drops.pop() if drops else None
        await pool.load(place.weights("one"), 1, "one")
        assert place.model(1).asked == [(1, "one")] * 2 and place.model(1).version == 1
        assert len(place.lives[1]) == 1, "asking again was enough"


async def test_a_delivery_that_failed_is_over_for_every_replica(place: Place) -> None:
    async with running(place) as pool:
        load, taking = place.model(1).load, asyncio.Event()

        async def slow(path: str, version: int, digest: str = "") -> Loaded:
            taking.set()
            await asyncio.sleep(0.3)
            return await load(path, version, digest)

        def refused(version: int, digest: str) -> Loaded:
            raise EngineError("model.safetensors cannot be read")

        place.model(1).load, place.model(0).on_load = slow, refused  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="cannot be read"):
            await pool.load(place.weights("one"), 1, "one")
        assert taking.is_set() and place.model(1).version == 1, "it was still under way"


async def test_a_replica_that_takes_no_weights_is_replaced(place: Place) -> None:
    async with running(place) as pool:
        place.model(1).on_load = lambda version, digest: Loaded(version=version, tensors=1, digest="garbled")
        loaded = await pool.load(place.weights("one"), 1, "one")
        assert loaded.digest == "one" and len(place.lives[1]) == 2
        assert [place.model(n).version for n in (0, 1)] == [1, 1]
        assert pool.counts() == {
            "engine/replicas": 2,
            "engine/restarts": 1,
            "engine/reissued": 0,
            "time/paused_s": 0.0,
        }


async def test_the_run_stops_where_the_replacement_takes_none_either(place: Place) -> None:
    def deaf(model: Model, attempt: int) -> None:
        if model.name == "engine-1":
            model.on_load = lambda version, digest: Loaded(version=version, tensors=1, digest="garbled")

    place.prepare = deaf
    async with running(place) as pool:
        with pytest.raises(CanaryError, match=r"engine-1 .* got|engine-1 .*\(1, 'garbled'\) after \(1, 'one'\)"):
            await pool.load(place.weights("one"), 1, "one")
        assert len(place.lives[1]) == 2
        assert [type(error) for error in place.ended] == [CanaryError]


async def test_a_delivery_does_not_wait_for_a_replica_that_is_replaced_no_more(place: Place) -> None:
    async with running(place, restarts=0) as pool:
        place.model(1).on_load = lambda version, digest: Loaded(version=version, tensors=1, digest="garbled")
        loaded = await pool.load(place.weights("one"), 1, "one")
        assert loaded.digest == "one" and pool.counts()["engine/replicas"] == 1
        assert place.ended == []


async def test_a_corrupted_folder_is_refused_by_name_and_nothing_is_replaced(place: Place) -> None:
    async with running(place) as pool:
        await pool.load(place.weights("one"), 1, "one")
        with pytest.raises(CanaryError, match=r"engine-\d refused version 2 .* digest twø"):
            await pool.load(place.weights("twø"), 2, "two")
        assert [place.model(n).version for n in (0, 1)] == [1, 1]
        assert all(len(lives) == 1 for lives in place.lives.values())


async def test_a_folder_that_cannot_be_read_is_the_folders_fault(place: Place) -> None:
    async with running(place) as pool:

        def unreadable(version: int, digest: str) -> Loaded:
            raise EngineError("model.safetensors cannot be read")

        for number in (0, 1):
            place.model(number).on_load = unreadable
        with pytest.raises(EngineError, match="cannot be read"):
            await pool.load(place.weights("one"), 1, "one")
        assert all(len(lives) == 1 for lives in place.lives.values())


async def test_an_old_version_is_refused(place: Place) -> None:
    async with running(place) as pool:
        await pool.load(place.weights("three"), 3, "three")
        with pytest.raises(EngineError, match="version 2 of the weights is older than version 3"):
            await pool.load(place.weights("two"), 2, "two")
        assert [place.model(n).version for n in (0, 1)] == [3, 3]


async def test_a_replacement_between_two_deliveries_waits_for_the_second(place: Place) -> None:
    async with running(place) as pool:
        await pool.load(place.weights("one"), 1, "one")
        folder = place.weights("two")  # exported, not delivered yet
        await place.lives[0][0].die()
        await until(lambda: len(place.lives[0]) == 2 and bool(place.model(0).asked))
        assert pool.counts()["engine/replicas"] == 1
        await pool.load(folder, 2, "two")
        await until(lambda: pool.counts()["engine/replicas"] == 2)
        assert place.model(0).asked == [(1, "one"), (2, "two")] and place.model(0).version == 2


def with_slots(place: Place, slots: int) -> None:
    """Every replica has so many and says so."""
    place.prepare = lambda model, attempt: setattr(model, "slots", slots)


async def have_said(pool: EnginePool) -> None:
    """Both replicas have told what they have."""
    loads = pool._placing.routes._loads
    await until(lambda: len(loads) == 2 and all(load.stats is not None for load in loads.values()))


async def test_draining_answers_what_is_under_way_and_refuses_the_rest(place: Place) -> None:
    with_slots(place, 2)
    async with running(place) as pool:
        await have_said(pool)
        place.model(0).go.clear()
        place.model(1).go.clear()
        asked = [asyncio.ensure_future(pool.generate(request(n))) for n in range(4)]
        await until(lambda: place.model(0).running + place.model(1).running == 4)
        asked.append(asyncio.ensure_future(pool.generate(request(4))))
        await until(lambda: len(pool._placing.held) == 1)
        draining = asyncio.ensure_future(pool.drain())
        await asyncio.sleep(0.05)
        with pytest.raises(EngineError, match="takes no more requests"):
            await pool.generate(request(9))
        assert not draining.done()
        for number in (0, 1):
            place.model(number).go.set()
        await draining
        assert all(len(one.token_ids) == 5 for one in await asyncio.gather(*asked))


async def test_draining_does_not_wait_for_a_request_that_was_cancelled_before_it_had_a_place(place: Place) -> None:
    with_slots(place, 0)
    async with running(place) as pool:
        await have_said(pool)
        first, second = (asyncio.ensure_future(pool.generate(request(n))) for n in range(2))
        await until(lambda: len(pool._placing.held) == 2)
        first.cancel()
        draining = asyncio.ensure_future(pool.drain())
        await until(lambda: len(pool._placing.held) == 1)
        assert not draining.done()
        second.cancel()
        await asyncio.wait_for(draining, 5)


async def test_requests_without_a_seed_draw_differently_on_every_replica(place: Place) -> None:
    async with running(place, seed=1) as pool:
        plain = GenerateRequest(id="r", prompt_ids=[1], max_tokens=1)
        got = await asyncio.gather(*(pool.generate(plain) for _ in range(4)))
        assert len({one.token_ids[0] for one in got}) == 4


async def test_a_refused_request_is_no_death(place: Place) -> None:
    async with running(place) as pool:

        async def refuse(*_: object) -> Generation:
            raise EngineError("max_tokens must be at least 1; got 0")

        place.model(0).generate = refuse  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="max_tokens"):
            await pool.generate(request(1))
        assert pool.counts() == {
            "engine/replicas": 2,
            "engine/restarts": 0,
            "engine/reissued": 0,
            "time/paused_s": 0.0,
        }
