"""What a run has begun and not yet put into a checkpoint: the groups that are open, the batches that were trained.

In: records, in the order in which things happened. Out: with which groups, and which of their episodes, a run goes on
after it was killed. Pure: no I/O, no clock. Leaves files to ledger.py, and what may run now to admission.py.

    Began ── Ended … ── Whole ──► Taken     trained, in the batch that makes version + 1
      │                   └─────► Gone      filtered: no batch takes it
      └─────────────────────────► Gone      cancelled: it could not be trained in time

Nothing of it may be lost, or a resume bends what is learnt: of episodes under way the long ones are the ones that a
death interrupts. What had ended is kept, and what had not is begun again with its own seeds, so that it becomes the
same episode; drawn anew, a part of the long ones would come out short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from rockroll.rollout.admission import Position
from rockroll.rollout.sample import Episode, Group


class Began(Struct, frozen=True, array_like=True, tag="began"):
    """A group was admitted; what was kept of it, if it was begun before, is void."""

    id: int
    version: int
    """Of the weights in the engine."""


class Ended(Struct, frozen=True, array_like=True, tag="ended"):
    """An episode of an open group ended by itself, with a reward or without."""

    episode: Episode


class Whole(Struct, frozen=True, array_like=True, tag="whole"):
    """A group has all its episodes, and waits to be trained."""

    group: Group
    """Its `episodes` are left out here."""
    indices: list[int]
    """Of the episodes that are in it."""


class Gone(Struct, frozen=True, array_like=True, tag="gone"):
    """No batch takes this group."""

    id: int
    tokens: int
    """Sampled for it."""
    discarded: dict[str, int]
    """Its episodes by outcome."""


class Taken(Struct, frozen=True, array_like=True, tag="taken"):
    """A batch was handed to the trainer."""

    version: int
    """The trainer's before the step."""
    ids: list[int]
    until: int
    """What groups below this number wasted, that are gone, is booked on it."""


Record = Began | Ended | Whole | Gone | Taken


@dataclass
class Kept:
    """An open group, or one of a batch."""

    version: int
    episodes: list[Episode] = field(default_factory=list)
    """Those that ended, in that order."""
    whole: Whole | None = None

    @property
    def group(self) -> Group:
        assert self.whole is not None
        group, indices = self.whole.group, self.whole.indices
        # of a group that was given up and begun with another situation, those of the first are here too
        mine = [e for e in self.episodes if (e.task, e.seed) == (group.task, group.seed)]
        chosen = [e for e in mine if e.valid and e.index in indices]
        return msgspec.structs.replace(group, episodes=sorted(chosen, key=lambda e: e.index))


class Books:
    """What was sampled for groups that no batch takes, until a batch has it booked on it."""

    def __init__(self) -> None:
        self.groups: dict[int, tuple[int, Counter[str]]] = {}
        """Sampled tokens, and episodes by outcome, by group."""

    def add(self, id: int, tokens: int, discarded: Mapping[str, int]) -> None:
        before, counted = self.groups.get(id, (0, Counter[str]()))
        self.groups[id] = before + tokens, counted + Counter(discarded)

    def void(self, id: int, episodes: Sequence[Episode]) -> None:
        """Episodes that were kept of a group, and are not any more."""
        spent = sum(episode.sampled + episode.thrown for episode in episodes)
        self.add(id, spent, Counter(episode.outcome for episode in episodes))

    def on(self, batch: list[Group], until: int) -> list[Group]:
        """The batch, with what groups below `until` wasted booked on its last one."""
        spent = [self.groups.pop(id) for id in sorted(self.groups) if id < until]
        last = batch[-1]
        tokens = last.wasted_tokens + sum(tokens for tokens, _ in spent)
        discarded = sum((counted for _, counted in spent), Counter(last.discarded))
        return [*batch[:-1], msgspec.structs.replace(last, wasted_tokens=tokens, discarded=dict(discarded))]

    def copy(self) -> Books:
        other = Books()
        other.groups = dict(self.groups)
        return other


class Opened:
    """The fold of a run's records. after: the version whose checkpoint it goes on from."""

    def __init__(self, after: int = 0) -> None:
        self.next = 0
        """The first group that was never admitted."""
        self.version = after
        """Of the weights that were delivered last, as far as the records tell."""
        self.open: dict[int, Kept] = {}
        """By group; whole ones in the order in which they became whole."""
        self.batches: dict[int, list[Group]] = {}
        """By version of the trainer before the step."""
        self.books = Books()

    def add(self, record: Record) -> None:
        """What happened next. ValueError for what cannot follow."""
        match record:
            case Began(id, version):
                if (void := self.open.pop(id, None)) is not None:
                    self.books.void(id, void.episodes)
                self.open[id] = Kept(version)
                self.next, self.version = max(self.next, id + 1), max(self.version, version)
            case Ended(episode):
                self._held(episode.group).episodes.append(episode)
            case Whole(group):
                kept = self._held(group.id)
                kept.whole = record
                self.open[group.id] = self.open.pop(group.id)
            case Gone(id, tokens, discarded):
                self._held(id)
                del self.open[id]
                self.books.add(id, tokens, discarded)
            case Taken(version, ids, until):
                groups = [self._held(id).group for id in ids]
                for id in ids:
                    del self.open[id]
                self.batches[version] = self.books.on(groups, until)

    def forget(self, version: int) -> None:
        """A checkpoint holds what the batches before `version` taught."""
        self.batches = {at: groups for at, groups in self.batches.items() if at >= version}
        self.version = max(self.version, version)

    def trained(self) -> Iterator[tuple[int, list[Group]]]:
        """(step, groups) of batches whose weights were delivered: to be trained again as they are, and forgotten."""
        for version in sorted(self.batches):
            if version < self.version:
                yield version + 1, self.batches.pop(version)

    @property
    def last_step(self) -> int:
        """The last step whose batch was taken."""
        return max(self.batches, default=self.version - 1) + 1

    def copy(self) -> Opened:
        """The same, without the batches; each goes its own way from now on."""
        other = Opened(self.version)
        other.next, other.books = self.next, self.books.copy()
        other.open = {id: Kept(kept.version, list(kept.episodes), kept.whole) for id, kept in self.open.items()}
        return other

    def __str__(self) -> str:
        again = f"batches trained again as they were: {len(self.batches)}"
        ended = sum(len(kept.episodes) for kept in self.open.values())
        return f"{again}; {ended} ended episodes of {len(self.open)} open groups are kept"

    @property
    def position(self) -> Position:
        """Where the tasks stand, once the batches of `trained` are."""
        return Position(
            self.next,
            held={id: kept.version for id, kept in self.open.items()},
            taken=[[group.id for group in self.batches[version]] for version in sorted(self.batches)],
        )

    def _held(self, id: int) -> Kept:
        if id not in self.open:
            raise ValueError(f"group {id} is not open")
        return self.open[id]
