"""Which groups may run, and which make the next batch: how staleness is bounded before any work starts.

In: groups as they are admitted, finished, discarded; the trainer's steps. Out: ids to start, the ids of a batch, ids
to cancel. Pure: no I/O, no clock, no tasks. Leaves what a group is to group.py, and running them to runner.py.

    admitted ── finish ──► done ── take ──► in training ── stepped ──► its slot is free
        │                    └── discard (filtered) ─────────────────► its slot is free
        └── take: it cannot be trained in time any more ── cancelled ─► its slot is free

A batch is B groups, trained at version v; a group admitted at version a is stale by v - a then, which is at most
max_staleness, always. Two rules make that so:
  slots     at most (max_staleness + 1)·B + extra groups hold a slot. A slot is free when the trainer's step is done and
            its weights are delivered, not earlier: max_staleness 0 is exactly synchronous.
  deadlines a group must be in the batch of version a + max_staleness at the latest. Of the groups with deadline v + j,
            j·B can still be trained later; what is beyond must be in this batch, and the batch waits for it. First-done
            batching without this lets stragglers age past any bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from msgspec import Struct

OnStale = Literal["wait", "drop"]


@dataclass(frozen=True)
class Taken:
    """The next batch."""

    groups: list[int]
    """B ids, in the order of their admission."""
    cancelled: list[int]
    """Groups that run and could not be trained in time any more: to be cancelled."""
    until: int = field(default=0, compare=False)
    """Groups below this number had been admitted; in order: were admitted before the last of the batch, and so are
    known to be done or gone."""
    again: bool = field(default=False, compare=False)
    """It was taken before, by a run that was killed while it trained it."""


class Position(Struct, frozen=True):
    """Where a run stands among its tasks: each is trained once, whenever it is stopped."""

    next: int = 0
    """The first group that was never admitted."""
    open: list[int] = []
    """Groups that were admitted and not yet trained: they come first, from their beginning."""
    held: dict[int, int] = {}
    """Groups of which something is kept, with the version at their admission: they go on where they can still be
    trained in time, and come from their beginning where not."""
    taken: list[list[int]] = []
    """Batches that were taken and not trained to their end: they are the next ones."""


class Admission:
    """Belongs to one run. batch: B. extra: groups started beyond need, of which as many are cancelled. start: where to
    go on. batches: how many there will be: what the last ones do not need is not started. None: no end.
    in_order: a batch is the B groups with the lowest ids, whichever were done first: what it is made of does not depend
    on the clock."""

    def __init__(
        self,
        batch: int,
        max_staleness: int = 0,
        *,
        extra: int = 0,
        on_stale: OnStale = "wait",
        version: int = 0,
        start: Position | None = None,
        batches: int | None = None,
        in_order: bool = False,
    ) -> None:
        if batch < 1 or max_staleness < 0 or extra < 0:
            raise ValueError(
                "a batch has at least 1 group, staleness and extra are at least 0; got "
                f"{batch}, {max_staleness}, {extra}"
            )
        self.version = version
        """Of the weights that a group admitted now is sampled with."""
        self._batch, self._bound, self._extra, self._on_stale = batch, max_staleness, extra, on_stale
        start = start or Position()
        self._next, self._again = start.next, list(start.open)
        self._pending = [sorted(ids) for ids in start.taken]
        self._left, self._in_order = batches, in_order
        self._running: dict[int, int] = {}
        """Version at admission, by id, in the order of admission."""
        self._done: dict[int, int] = {}
        """The same, in the order in which they finished."""
        self._training: list[int] = []
        for id, admitted in sorted(start.held.items(), key=lambda item: (item[1], item[0])):
            if self._fits(admitted):
                self._running[id] = admitted
            else:
                self._again.append(id)
        self._again.sort()

    def _fits(self, admitted: int) -> bool:
        """Whether a group of that version, with those that run, can still be trained in time: always, but where the
        recipe asks for less staleness or smaller batches than before it was stopped."""
        slack = self._slack(admitted)
        later = slack + 1 - len(self._pending)
        older = sum(self._slack(each) <= slack for each in self._running.values())
        return later > 0 and (self._on_stale == "drop" or older < later * self._batch + self._extra)

    @property
    def running(self) -> list[int]:
        """Groups that were admitted and are not done, in the order of admission."""
        return list(self._running)

    @property
    def held(self) -> int:
        """Groups that hold a slot."""
        return len(self._running) + len(self._done) + len(self._training) + sum(map(len, self._pending))

    @property
    def slots(self) -> int:
        """How many groups may hold one now. What starts during a step is one version older at the next batch: then
        only those that the batches after it can take, none at all where max_staleness is 0."""
        extra = self._extra if self._bound or not (self._training or self._pending) else 0
        return (self._bound + 1) * self._batch + extra

    def admit(self) -> list[int]:
        """Ids to start now: as many as there are free slots."""
        free = self.slots - self.held
        if self._left is not None:
            needed = (self._left - len(self._pending)) * self._batch + self._extra
            free = min(free, needed - len(self._running) - len(self._done))
        ids = self._again[: max(0, free)]
        del self._again[: len(ids)]
        new = range(self._next, self._next + max(0, free - len(ids)))
        self._next += len(new)
        ids += new
        self._running.update(dict.fromkeys(ids, self.version))
        return ids

    def finish(self, id: int) -> None:
        """A group is complete and waits to be trained."""
        self._done[id] = self._running.pop(id)

    def discard(self, id: int) -> None:
        """A group will not be trained (filtered, or spoiled): its slot is free."""
        if self._running.pop(id, None) is None and self._done.pop(id, None) is None:
            raise ValueError(f"group {id} holds no slot")

    def take(self) -> Taken | None:
        """The batch to train now, or None where it must still be waited for. Between a batch and `stepped`: None."""
        if self._training:
            return None
        if self._pending:
            self._training = self._pending.pop(0)
            if self._left is not None:
                self._left -= 1
            return Taken(self._training, [], again=True)
        if not self.ready:
            return None
        chosen: list[int] = sorted(self._done)[: self._batch] if self._in_order else []
        slack = {id: self._slack(admitted) for id, admitted in self._done.items()}
        for j in range(self._bound + 1):
            within = [id for id in self._done if slack[id] <= j]
            wanted = self._need(j) if self._on_stale == "wait" or j else len(within)
            for id in within:
                if len(chosen) < self._batch and sum(slack[each] <= j for each in chosen) < wanted:
                    chosen += [id] if id not in chosen else []
        chosen += [id for id in self._done if id not in chosen][: self._batch - len(chosen)]
        for id in chosen:
            del self._done[id]
        held = [*self._running.items(), *self._done.items()]
        late = [id for id, admitted in held if self._slack(admitted) <= 0]
        for id in late:
            self.discard(id)
        self._training = sorted(chosen)
        if self._left is not None:
            self._left -= 1
        return Taken(self._training, late, self._training[-1] if self._in_order else self._next)

    @property
    def ready(self) -> bool:
        """There is a batch, and nothing that must be in it is still running."""
        if len(self._done) < self._batch:
            return False
        if self._in_order:
            return min(self._running, default=self._next) > sorted(self._done)[self._batch - 1]
        if self._on_stale == "drop":
            return True
        done = [self._slack(admitted) for admitted in self._done.values()]
        return all(sum(slack <= j for slack in done) >= self._need(j) for j in range(self._bound + 1))

    def stepped(self, version: int) -> None:
        """The batch was trained and the weights of `version` are delivered: its slots are free."""
        if version != self.version + 1:
            raise ValueError(f"a step makes the next version; got {version} after {self.version}")
        self.version = version
        self._training = []

    def _slack(self, admitted: int) -> int:
        """How many later batches could still take a group of that version."""
        return admitted + self._bound - self.version

    def _need(self, j: int) -> int:
        """How many groups of slack up to j this batch must take, so that the rest can be trained in time."""
        waiting = sum(self._slack(admitted) <= j for held in (self._running, self._done) for admitted in held.values())
        return min(self._batch, max(0, waiting - j * self._batch - self._extra))
