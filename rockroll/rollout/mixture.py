"""Which task a group is of: mixtures that are exact at any time, and curricula that follow what was measured.

In: arms (a task at one of its levels) with their shares; groups' pass rates as they are known. Out: the arm of a
group, by its number. Pure but for `log`, which is told what a run that goes on must know. Leaves files to
curriculum_log.py and running groups to runner.py.

The arm of a number depends on the seed, the shares and the records of `log` alone: not on timing, nor on which groups
were done when it is asked for. Without a curriculum there are no records, and a run that goes on draws on as it would
have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from msgspec import Struct

from rockroll.rollout.config import CurriculumConfig, TaskConfig
from rockroll.rollout.domain import shares
from rockroll.rollout.seed import derive

T = TypeVar("T")


class Arm(NamedTuple):
    """A task at one of its levels: what a group can be of."""

    task: str
    level: int = 0


class Measured(Struct, frozen=True, tag="measured"):
    """A group is complete: the share of its episodes that passed. kept: it is worth training."""

    group: int
    task: str
    level: int
    rate: float
    kept: bool


class Drawing(Struct, frozen=True, tag="drawing"):
    """From group `since` on these are the shares, by task and level; all that was measured before is in them."""

    since: int
    shares: dict[str, list[float]]


class Folded(Struct, frozen=True, tag="folded"):
    """Every record before it in one: where the draws stand, and what is still to be known of groups from `since` on."""

    since: int
    arms: list[int]
    """What those groups are of, in their order, as a place in the arms of `shares`."""
    credit: dict[str, list[float]]
    """Of the draws (see Turns), by task and level."""
    shares: dict[str, list[float]]
    later: dict[str, dict[str, list[float]]]
    """Shares from a group on that was not drawn yet, by its number."""
    rates: dict[str, list[float | None]]
    """By task and level; null where nothing was measured."""
    measured: list[int]
    """Which of those groups are in the rates, or in `fresh`."""
    fresh: list[Measured]
    """Those that are not in the rates yet."""


Record = Measured | Drawing | Folded


@dataclass
class Turns:
    """Draws by shares: after n draws each arm was drawn within one of n times its share, whatever the shares.

    The rule is Tijdeman's (The chairman assignment problem, Discrete Mathematics 32, 1980): of the arms that may be
    drawn without overtaking their share by a whole one, the one that would fall behind first. Ties are the seed's.
    """

    seed: int
    arms: int
    credit: list[float] = field(default_factory=list)
    """Of each arm: what it should have been drawn, minus what it was; they add up to 0."""
    drawn: int = 0

    def __post_init__(self) -> None:
        self.credit = self.credit or [0.0] * self.arms

    def draw(self, shares: Sequence[float]) -> int:
        """The next arm. shares: they add up to 1."""
        slack = 1 / (2 * self.arms - 2) if self.arms > 1 else 0.0
        due: list[tuple[int, int, int]] = []
        for arm, share in enumerate(shares):
            if share > 0 and self.credit[arm] + share >= slack - 1e-9:
                behind = math.ceil((1 - slack - self.credit[arm]) / share - 1e-9)
                due.append((behind, derive(self.seed, "tasks", self.drawn, arm), arm))
        chosen = min(due)[2] if due else max(range(self.arms), key=lambda arm: self.credit[arm] + shares[arm])
        self.credit = [credit + share for credit, share in zip(self.credit, shares, strict=True)]
        self.credit[chosen] -= 1
        self.drawn += 1
        return chosen


class Mixture:
    """Belongs to one run.

    batch: groups of a training step; rates change the shares when so many more were measured and kept.
    past: the records of the run that is continued. log: told each new record, before it counts.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        seed: int,
        *,
        batch: int = 1,
        curriculum: CurriculumConfig | None = None,
        past: Iterable[Record] = (),
        log: Callable[[Record], None] = lambda _: None,
    ) -> None:
        self.arms = [Arm(task.label, level) for task in tasks for level in range(max(1, len(task.levels)))]
        part = shares(tasks)
        levels = {task.label: max(1, len(task.levels)) for task in tasks}
        self._base = [part[arm.task] / levels[arm.task] for arm in self.arms]
        self._seed, self._batch, self.curriculum, self._log = seed, batch, curriculum, log
        self._turns = Turns(seed, len(self.arms))
        self._first = 0
        """No group below this number is asked for any more."""
        self._drawn: list[int] = []
        """The arm of every group from that number on that was asked for."""
        self._shares = self._base
        self._later: dict[int, list[float]] = {}
        """Shares from a group number on that was not drawn yet."""
        self.rates: dict[Arm, float] = {}
        """Mean pass rate, of what was measured."""
        self._seen: set[int] = set()
        self._fresh: list[Measured] = []
        self.benched: dict[str, str] = {}
        """Tasks that are drawn no more, and why."""
        for record in past if curriculum else ():
            if isinstance(record, Measured):
                self._take(record)
            elif isinstance(record, Drawing):
                self._settle()
                self._later[record.since] = self._known(record.shares)
            else:
                self._unfold(record)

    def arm(self, number: int) -> Arm:
        """What the group of that number is of."""
        if number < self._first:
            return self.instead(number)  # a run that goes on begins no such group
        while self._next <= number:
            self._drawn.append(self._draw(self._next))
        found = self.arms[self._drawn[number - self._first]]
        return self.instead(number) if found.task in self.benched else found

    def instead(self, number: int) -> Arm:
        """For a group whose task is benched: one of the others, by their shares."""
        left = [(arm, share) for arm, share in zip(self.arms, self._base, strict=True) if arm.task not in self.benched]
        point = derive(self._seed, "instead", number) / 2**63 * sum(share for _, share in left)
        for arm, share in left:
            point -= share
            if point < 0:
                return arm
        return left[-1][0]

    def bench(self, task: str, why: str) -> bool:
        """The task cannot be run: draw it no more in this process. False, and nothing changes, where it is the last."""
        if {arm.task for arm in self.arms} <= {*self.benched, task}:
            return False
        self.benched.setdefault(task, why)
        return True

    def measure(self, number: int, arm: Arm, rate: float, kept: bool) -> None:
        """A group is complete. Counted once for each number; when a batch of them is, the draws after that follow."""
        if self.curriculum is None or number in self._seen or number < self._first:
            return
        record = Measured(number, arm.task, arm.level, rate, kept)
        self._log(record)
        self._take(record)
        if sum(each.kept for each in self._fresh) >= self._batch:
            self._settle()
            since = max([self._next, *self._later])
            drawing = Drawing(since, self._by_task(self._following()))
            self._log(drawing)
            self._later[since] = self._known(drawing.shares)

    def fold(self, floor: int) -> Folded:
        """Forget what is known of groups below number `floor` alone: no run that goes on will ask for one of them.
        Returns the record that says what all records up to now say of the others."""
        floor = max(self._first, min(floor, self._next))
        del self._drawn[: floor - self._first]
        self._first = floor
        self._seen = {number for number in self._seen if number >= floor}
        return Folded(
            since=floor,
            arms=list(self._drawn),
            credit=self._by_task(self._turns.credit),
            shares=self._by_task(self._shares),
            later={str(since): self._by_task(shares) for since, shares in self._later.items()},
            rates=self._by_task([self.rates.get(arm) for arm in self.arms]),
            measured=sorted(self._seen),
            fresh=list(self._fresh),
        )

    def _unfold(self, folded: Folded) -> None:
        self._first, self._seen, self._fresh = folded.since, set(folded.measured), list(folded.fresh)
        for arm in self.arms:
            rates = folded.rates.get(arm.task, [])
            if arm.level < len(rates) and (rate := rates[arm.level]) is not None:
                self.rates[arm] = rate
        if not self._same(folded.shares):  # the draws begin anew, with the recipe's own shares
            self._turns.drawn = folded.since
            return
        self._drawn = list(folded.arms)
        self._turns.credit = [folded.credit[arm.task][arm.level] for arm in self.arms]
        self._turns.drawn = self._next
        self._shares = self._known(folded.shares)
        self._later = {int(since): self._known(shares) for since, shares in folded.later.items()}

    @property
    def _next(self) -> int:
        """The first number that was not drawn yet."""
        return self._first + len(self._drawn)

    @property
    def shares(self) -> dict[Arm, float]:
        """Of the next draws."""
        last = self._later[max(self._later)] if self._later else self._shares
        return dict(zip(self.arms, last, strict=True))

    def _draw(self, number: int) -> int:
        self._shares = self._later.pop(number, self._shares)
        return self._turns.draw(self._shares)

    def _take(self, record: Measured) -> None:
        self._seen.add(record.group)
        self._fresh.append(record)

    def _settle(self) -> None:
        """What was measured, in the order of the groups' numbers and not of their ends, becomes part of the rates."""
        assert self.curriculum is not None
        for each in sorted(self._fresh, key=lambda each: each.group):
            arm = Arm(each.task, each.level)
            if arm in self.arms:
                known = self.rates.get(arm, each.rate)
                self.rates[arm] = known + (each.rate - known) / self.curriculum.memory
        self._fresh = []

    def _following(self) -> list[float]:
        """The shares that the rates ask for."""
        config = self.curriculum
        assert config is not None
        low, high = config.window
        wanted = [
            share * (config.boost if low <= self.rates.get(arm, low) <= high else 1.0)
            for arm, share in zip(self.arms, self._base, strict=True)
        ]
        if config.among == "tasks":
            return [each / sum(wanted) for each in wanted]
        of_task: dict[str, float] = {}
        base: dict[str, float] = {}
        for arm, each, share in zip(self.arms, wanted, self._base, strict=True):
            of_task[arm.task] = of_task.get(arm.task, 0.0) + each
            base[arm.task] = base.get(arm.task, 0.0) + share
        return [each / of_task[arm.task] * base[arm.task] for arm, each in zip(self.arms, wanted, strict=True)]

    def _by_task(self, values: Sequence[T]) -> dict[str, list[T]]:
        found: dict[str, list[T]] = {}
        for arm, value in zip(self.arms, values, strict=True):
            found.setdefault(arm.task, []).append(value)
        return found

    def _same(self, recorded: dict[str, list[float]]) -> bool:
        """Whether these are shares of the arms of now, in their order."""
        return [(task, len(each)) for task, each in recorded.items()] == [
            (task, len(each)) for task, each in self._by_task(self._base).items()
        ]

    def _known(self, recorded: dict[str, list[float]]) -> list[float]:
        """Recorded shares for the arms of now; the recipe's own where its tasks are others than then."""
        if not self._same(recorded):
            return self._base
        return [recorded[arm.task][arm.level] for arm in self.arms]
