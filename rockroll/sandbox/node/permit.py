"""Whether this node makes one more box.

In: a config and who asks. Out: a ticket, or an error at once that says the rule, the value and the cure. It reads
node.yaml again when the file has changed. Leaves the rules to quotas.py and limits.py, and when the box is made to
admission.py.

Warm boxes count, as whatever stands on the host does; but where one more person's box would not fit, they go first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rockroll.errors import HostError, QuotaExceeded
from rockroll.sandbox.boxes import grant
from rockroll.sandbox.boxes.box import Box
from rockroll.sandbox.boxes.grant import Granted
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.node import limits, node_config, quotas
from rockroll.sandbox.node.limits import Facts, Room
from rockroll.sandbox.node.node_config import NodeConfig
from rockroll.sandbox.node.warm import Warm

FRESH_S = 0.5
"""Facts are good for so long, so that a storm does not read them for each box: those made since then count apart."""


class Ticket:
    """A promise of one box: it counts until `used`, from when on the box itself does."""

    def __init__(self, account: str, granted: Granted, tickets: set[Ticket]) -> None:
        self.account, self.granted = account, granted
        self._tickets = tickets
        tickets.add(self)

    def used(self) -> None:
        self._tickets.discard(self)


class Permit:
    """boxes: those of people, by id. read: the facts of this host. changed: told of a node.yaml that has changed."""

    def __init__(
        self,
        boxes: Mapping[str, Box],
        warm: Warm[Box],
        read: Callable[[], Facts],
        changed: Callable[[NodeConfig], None],
    ) -> None:
        self._boxes, self._warm, self._read, self._changed = boxes, warm, read, changed
        self._tickets: set[Ticket] = set()
        self._file = node_config.path()
        self._stamp = -1.0
        self._config = NodeConfig()
        self._known: tuple[float, Facts] | None = None
        self._seen: set[str] = set()
        """The boxes that were there when the facts were read."""

    @property
    def config(self) -> NodeConfig:
        """node.yaml as it is now. Raises UsageError where it is wrong: what it should forbid, nobody knows."""
        stamp = _stamp(self._file)
        if stamp != self._stamp:
            self._config = node_config.load(self._file)
            self._stamp = stamp
            self._changed(self._config)
        return self._config

    async def ask(self, config: SandboxConfig, account: str) -> Ticket:
        """For a box that will be made. Raises QuotaExceeded, HostError; removes warm boxes where one is in the way."""
        policy = self.config
        while (error := self._refusal(policy, config, account)) is not None:
            if not await self._warm.give_up():
                raise error
        return Ticket(account, grant.of(config), self._tickets)

    def ask_warm(self, config: SandboxConfig, account: str) -> Ticket:
        """For a box that stands ready: the host has it already. Raises QuotaExceeded."""
        more = grant.of(config)
        mine, others = self._granted(account)
        if said := quotas.refusal(self.config.quotas, account, mine, others, more):
            raise QuotaExceeded(said)
        return Ticket(account, more, self._tickets)

    def refusal_of_refill(self, config: SandboxConfig) -> Exception | None:
        """Why a warm box cannot be made now: nobody gives way to it."""
        return self._refusal(self.config, config, "")

    def rooms(self, config: SandboxConfig) -> list[Room]:
        """How much of each limit is left for boxes of this kind."""
        return self._rooms(self.config, config, self._granted("", warm=True)[1])

    def _refusal(self, policy: NodeConfig, config: SandboxConfig, account: str) -> Exception | None:
        more = grant.of(config)
        mine, everything = self._granted(account, warm=True)
        if said := quotas.refusal(policy.quotas, account, mine, everything, more):
            return QuotaExceeded(said)
        said = limits.refusal(self._rooms(policy, config, everything))
        return HostError(said) if said else None

    def _rooms(self, policy: NodeConfig, config: SandboxConfig, everything: Granted) -> list[Room]:
        facts = self._facts()
        unseen = sum(box.id not in self._seen for box in (*self._boxes.values(), *self._warm.boxes))
        making = len(self._tickets) + unseen + self._warm.making
        return limits.rooms(facts, everything, grant.of(config), policy.limits, everything.boxes, making)

    def _facts(self) -> Facts:
        now = time.monotonic()
        if self._known is None or now > self._known[0] + FRESH_S:
            self._known = now, self._read()
            self._seen = {box.id for box in (*self._boxes.values(), *self._warm.boxes) if box.container}
        return self._known[1]

    def _granted(self, account: str, *, warm: bool = False) -> tuple[Granted, Granted]:
        """What this account has, and all together, promises included."""
        held = [(box.account, box.granted) for box in self._boxes.values()]
        held += [(ticket.account, ticket.granted) for ticket in self._tickets]
        mine = grant.add(granted for owner, granted in held if owner == account)
        everything = grant.add(
            [granted for _, granted in held] + ([box.granted for box in self._warm.boxes] if warm else [])
        )
        return mine, everything


def reader(store: Path, *, rootless: bool) -> Callable[[], Facts]:
    """What reads the facts of a host with this store."""
    return lambda: limits.read(store, file_locks=rootless)


def _stamp(path: Path) -> float:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0.0
