"""Training groups, sampled ahead of the trainer as far as staleness allows.

In: how one group is collected; the trainer's steps, as they are done; what a run before it had begun. Out: batches of
complete groups, each within its bound; records of what happens. Leaves which groups may run and which make a batch to
admission.py, one group to runner.py, and what is kept of a run that was killed to opened.py.

Between `take` and `stepped` the groups of later batches go on; with max_staleness 0 there are none, and sampling and
training take turns.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Self

import msgspec

from rockroll.errors import RockrollError
from rockroll.rollout import opened
from rockroll.rollout.admission import Admission, Taken
from rockroll.rollout.group import GroupState
from rockroll.rollout.opened import Kept, Opened
from rockroll.rollout.sample import Group

Collect = Callable[[GroupState], Coroutine[Any, Any, Group]]
"""Runs one group to its end. Cancelled, it cancels its episodes and books them in the state."""


class Stream:
    """Use as `async with`: what still runs at its end is cancelled and awaited.

    state: the group of an id. collect: runs it. keep: whether a complete group is worth training; one that is not is
    discarded and another is begun in its slot. past: what an earlier run had begun; the admission starts where it
    says. note: told what happens before it counts.
    """

    def __init__(
        self,
        admission: Admission,
        state: Callable[[int], GroupState],
        collect: Collect,
        keep: Callable[[Group], bool] = lambda _: True,
        *,
        past: Opened | None = None,
        note: Callable[[opened.Record], None] = lambda _: None,
    ) -> None:
        self._admission, self._state, self._collect, self._keep = admission, state, collect, keep
        self._tasks: dict[int, asyncio.Task[Group]] = {}
        self._states: dict[int, GroupState] = {}
        self._complete: dict[int, Group] = {}
        self._unwanted: set[int] = set()
        """Cancelled for want of time; one may complete all the same before it notices."""
        self._past, self._note = past or Opened(), note
        self._books = self._past.books.copy()
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._over = False

    async def __aenter__(self) -> Self:
        try:
            self._start()
        except RockrollError:  # what happens cannot be noted
            await self.__aexit__()
            raise
        return self

    def _start(self) -> None:
        for groups in self._past.batches.values():
            self._complete |= {group.id: group for group in groups}
        going = set(self._admission.running)
        for id, kept in self._past.open.items():
            if id in going:
                self._go_on(id, kept)
            else:  # it could not be trained in time any more, and is begun anew when there is a slot
                self._books.void(id, kept.episodes)
        self._begin()

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await self._cancel(list(self._tasks))

    async def take(self) -> list[Group]:
        """The next batch, in the order of admission, as soon as there is one. Raises what a group raised.

        What was sampled and belongs to no group of a batch (cancelled, filtered) is booked on the last of this one.
        """
        taken = await self._next()
        self._unwanted = {id for id in taken.cancelled if id in self._tasks}
        await self._cancel(list(self._unwanted))
        for id in taken.cancelled:
            if (group := self._complete.pop(id, None)) is not None:
                self._book(group, "cancelled")
        groups = [self._complete.pop(id) for id in taken.groups]
        if not taken.again:
            self._note(opened.Taken(self._admission.version, taken.groups, taken.until))
            groups = self._books.on(groups, taken.until)
        self._begin()
        return groups

    async def quiet(self) -> None:
        """Nothing is being sampled. Raises what a group raised."""
        while self._tasks:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def _next(self) -> Taken:
        while True:
            if self._failure is not None:
                raise self._failure
            if (taken := self._admission.take()) is not None:
                return taken
            self._changed.clear()
            await self._changed.wait()

    def stepped(self, version: int) -> None:
        """The batch is trained and weights `version` are delivered: the next groups may begin."""
        self._admission.stepped(version)
        self._begin()
        self._changed.set()

    def _begin(self) -> None:
        if self._over or self._failure is not None:
            return
        for id in self._admission.admit():
            self._note(opened.Began(id, self._admission.version))
            self._run(id, self._state(id))

    def _run(self, id: int, state: GroupState) -> None:
        self._states[id] = state
        task = self._tasks[id] = asyncio.get_running_loop().create_task(self._collect(state))
        task.add_done_callback(lambda task, id=id: self._ended(id, task))

    def _go_on(self, id: int, kept: Kept) -> None:
        """A group that an earlier run had begun: what of it had ended is not sampled again."""
        state = self._state(id)
        if any((each.task, each.seed) != (state.task, state.seed) for each in kept.episodes):
            self._note(opened.Began(id, kept.version))  # the recipe has another seed or task now
            self._books.void(id, kept.episodes)
            self._run(id, state)
        elif kept.whole is not None:
            self._complete[id] = kept.group
            self._admission.finish(id)
        else:
            state.keep(kept.episodes)
            self._run(id, state)

    def _ended(self, id: int, task: asyncio.Task[Group]) -> None:
        """A group's task is done: by itself, or because it was cancelled."""
        del self._tasks[id]
        state = self._states.pop(id)
        try:
            if task.cancelled():
                if not self._over:  # at the end nothing is given up: the next run goes on with it
                    self._give_up(id, state.spent_tokens, state.ended)
            elif (error := task.exception()) is not None:
                self._failure = self._failure or error
            elif id in self._unwanted:
                self._book(task.result(), "cancelled")
            elif self._keep(group := task.result()):
                books = msgspec.structs.replace(group, episodes=[])
                self._note(opened.Whole(books, [episode.index for episode in group.episodes]))
                self._complete[id] = group
                self._admission.finish(id)
            else:
                self._book(group, "filtered")
                self._admission.discard(id)
                self._begin()
        except RockrollError as error:  # what happened could not be noted
            self._failure = self._failure or error
        self._changed.set()

    def _book(self, group: Group, why: str) -> None:
        """A complete group that no batch takes."""
        tokens = group.wasted_tokens + sum(episode.sampled for episode in group.episodes)
        self._give_up(group.id, tokens, Counter(group.discarded) + Counter({why: len(group.episodes)}))

    def _give_up(self, id: int, tokens: int, discarded: Counter[str]) -> None:
        self._note(opened.Gone(id, tokens, dict(discarded)))
        self._books.add(id, tokens, discarded)

    async def _cancel(self, ids: list[int]) -> None:
        tasks = [self._tasks[id] for id in ids]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
