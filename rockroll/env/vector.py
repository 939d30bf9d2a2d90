"""Environments to be waited for, and many of them at once: `rockroll.make_async` and `rockroll.make_vec`.

In: a task's name, how many, where they are played. Out: an AsyncEnv, a VecEnv, or the form of that which is waited for
(api.py says what each promises). Leaves one process's environments to rows.py, a process to apart.py and a box to
boxed.py.

With where="process" each worker process has an equal part of them, and all step side by side. One that hangs for
`limit` seconds, or crashes, is killed, and the others with it: their episodes are over, and `reset` starts new ones.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from rockroll.env.apart import START_S, ApartEnv, Worker, Workers, sent
from rockroll.env.boxed import BoxedEnv
from rockroll.env.registry import make
from rockroll.env.rows import Autoreset, Begun, Rows, Stepped
from rockroll.env.source import source
from rockroll.errors import EnvError, UsageError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

Where = Literal["here", "process"]


def make_vec(
    name: str,
    n: int,
    *,
    where: Where = "here",
    workers: int | None = None,
    autoreset: Autoreset = "next_step",
    limit: float = 60.0,
    **options: Any,
) -> Vector:
    """n environments of that name, stepped together by blocking calls: a VecEnv, to be closed.

    where: "process" plays them in `workers` processes side by side (as many as there are processors, and n at the
    most). autoreset: next_step, same_step or disabled. limit: seconds that one call may take there. options: of the
    environment. Raises UsageError for what cannot be.
    """
    return Vector(AsyncVector(name, n, where, workers, autoreset, limit, options))


def make_async(
    name: str,
    n: int | None = None,
    *,
    where: Where = "here",
    sandbox: Sandbox | None = None,
    workers: int | None = None,
    autoreset: Autoreset = "next_step",
    limit: float = 60.0,
    **options: Any,
) -> Any:
    """One environment to be waited for (an AsyncEnv), or with n a VecEnv to be waited for; `await env.aclose()` at the
    end, or `async with`. sandbox: a started one, in which it is played. The rest is as `make_vec` takes it."""
    if n is not None:
        if sandbox is not None:
            raise UsageError("one sandbox plays one environment: leave out n, or open a sandbox for each")
        return AsyncVector(name, n, where, workers, autoreset, limit, options)
    if sandbox is not None:
        return BoxedEnv(sandbox, source(name), options, limit=limit)
    return Single(name, where, limit, options)


class Single:
    """One Env, waited for, here or in a process of its own."""

    def __init__(self, name: str, where: Where, limit: float, options: dict[str, Any]) -> None:
        _known(where)
        self._workers = Workers() if where == "process" else None
        self._env = ApartEnv(self._workers, name, options, limit) if self._workers else make(name, **options)

    async def reset(self, seed: int | None = None) -> tuple[Any, ...]:
        return await _awaited(self._env.reset(seed=seed))

    async def step(self, action: str) -> tuple[Any, ...]:
        return await _awaited(self._env.step(action))

    async def aclose(self) -> None:
        if callable(shut := getattr(self._env, "close", None)):
            shut()
        if self._workers:
            await self._workers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncVector:
    """A VecEnv whose methods are waited for."""

    def __init__(
        self,
        name: str,
        n: int,
        where: Where,
        workers: int | None,
        autoreset: Autoreset,
        limit: float,
        options: dict[str, Any],
    ) -> None:
        _known(where)
        if n < 1:
            raise UsageError(f"n is 1 or more environments; got {n}")
        if workers is not None and (workers < 1 or where == "here"):
            raise UsageError(f'workers is 1 or more processes, with where="process"; got {workers}, where={where!r}')
        self.n, self._name, self._limit, self._options = n, name, limit, options
        self._autoreset: Autoreset = autoreset
        if autoreset not in get_args(Autoreset):
            raise UsageError(f"autoreset is {', '.join(get_args(Autoreset))}; got {autoreset!r}")
        self.rows = Rows(name, options, n, autoreset) if where == "here" else None
        count = min(n, workers or os.cpu_count() or 1)
        self._parts = [range(n * i // count, n * (i + 1) // count) for i in range(count)]
        self._workers: list[Worker] = []

    @property
    def pids(self) -> list[int]:
        """Of the worker processes that live."""
        return [worker.pid for worker in self._workers]

    def seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        """One for each. Raises UsageError where there are too few."""
        if seed is None or isinstance(seed, int):
            return [None if seed is None else seed + i for i in range(self.n)]
        if len(seed) != self.n:
            raise UsageError(f"a seed for each of {self.n} environments, or one for all; got {len(seed)}")
        return list(seed)

    async def reset(self, seed: int | Sequence[int | None] | None = None, mask: Sequence[bool] | None = None) -> Begun:
        seeds = self.seeds(seed)
        _as_many("mask", mask, self.n)
        if self.rows is not None:
            return await self.rows.reset(seeds, mask)
        if not self._workers:
            if mask is not None and not all(mask):
                raise EnvError(f"{self._name}: the first reset, and one after an error, is of all: leave out mask")
            await self._start()
        parts = [
            (seeds[at.start : at.stop], None if mask is None else list(mask[at.start : at.stop])) for at in self._parts
        ]
        return _joined(await self._each("reset", parts))

    async def step(self, actions: Sequence[str]) -> Stepped:
        _as_many("actions", actions, self.n)
        if self.rows is not None:
            return await self.rows.step(actions)
        if not self._workers:
            raise EnvError(f"{self._name}: step comes after reset")
        return _joined(await self._each("step", [([sent(actions[i]) for i in at],) for at in self._parts]))

    async def aclose(self) -> None:
        if self.rows is not None:
            self.rows.close()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.kill()
        await asyncio.gather(*(worker.gone() for worker in workers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _start(self) -> None:
        self._workers = list(await asyncio.gather(*(Worker.start() for _ in self._parts)))
        makes = [(self._name, self._options, len(at), self._autoreset, at.start, self.n) for at in self._parts]
        await self._each("make_rows", makes, max(self._limit, START_S))

    async def _each(self, method: str, arguments: Sequence[tuple[Any, ...]], limit: float | None = None) -> list[Any]:
        """What each process says to its own. Where one fails, or this is cancelled, all are killed: the others may have
        stepped."""
        try:
            calls = [
                worker.told(self._name, limit or self._limit, method, *part)
                for worker, part in zip(self._workers, arguments, strict=True)
            ]
            return await asyncio.gather(*calls)
        except BaseException:
            await self.aclose()
            raise


class Vector:
    """A VecEnv: an AsyncVector, without waiting."""

    def __init__(self, vector: AsyncVector) -> None:
        self._vector, self._runner = vector, asyncio.Runner()
        self.n = vector.n

    def reset(self, seed: int | Sequence[int | None] | None = None, mask: Sequence[bool] | None = None) -> Begun:
        return self._now(lambda: self._vector.reset(seed, mask))

    def step(self, actions: Sequence[str]) -> Stepped:
        return self._now(lambda: self._vector.step(actions))

    def close(self) -> None:
        """Ends the processes, and returns when they are gone."""
        self._now(self._vector.aclose, False)
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _now(self, work: Callable[[], Any], here: bool = True) -> Any:
        if here and (rows := self._vector.rows) is not None and not rows.waits:
            return rows.now(work(), self._runner)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._runner.run(work())
        raise UsageError("a VecEnv of make_vec blocks its thread: in a coroutine use rockroll.make_async(NAME, n)")


def _joined(parts: Sequence[Sequence[Any]]) -> Any:
    """The lists of all parts, one behind the other."""
    return tuple([each for part in column for each in part] for column in zip(*parts, strict=True))


def _as_many(what: str, given: Sequence[Any] | None, n: int) -> None:
    if given is not None and (len(given) != n or isinstance(given, str)):
        raise UsageError(f"{what}: one for each of {n} environments; got {len(given)}")


def _known(where: str) -> None:
    if where not in ("here", "process"):
        raise UsageError(f"where is here or process (a sandbox is given by sandbox=…); got {where!r}")


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
