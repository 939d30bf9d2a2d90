"""What a process needs of a machine, and which machine gets it.

In: needs by process, rooms by machine. Out: a machine for each process, or the sentence that says what is missing.
Pure: nothing is started, nobody is asked. Leaves knowing the machines to on_ray/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rockroll import units


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one process takes while it runs. On this machine alone nobody asks for it."""

    cpus: float = 1.0
    gpus: float = 0.0
    """A part of one, where several processes share it."""
    memory: int = 0
    """Bytes of main memory; 0: not known."""

    def __str__(self) -> str:
        said = [_count(self.cpus, "CPU")]
        said += [_count(self.gpus, "GPU")] if self.gpus else []
        said += [units.show_size(self.memory)] if self.memory else []
        return ", ".join(said)


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'s' * (number != 1)}"


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a machine has left."""

    node: str
    """Its id."""
    name: str
    """Its address, for people."""
    cpus: float
    gpus: float
    memory: int
    here: bool = False
    """The machine that this process is on: nothing has to be sent there."""

    def takes(self, needs: Needs) -> bool:
        slack = 1e-6  # shares of a GPU are floats
        return (
            needs.cpus <= self.cpus + slack and needs.gpus <= self.gpus + slack and needs.memory <= self.memory + slack
        )

    def without(self, needs: Needs) -> Room:
        return Room(
            node=self.node,
            name=self.name,
            here=self.here,
            cpus=self.cpus - needs.cpus,
            gpus=self.gpus - needs.gpus,
            memory=self.memory - needs.memory,
        )

    def __str__(self) -> str:
        return str(Needs(cpus=self.cpus, gpus=self.gpus, memory=max(0, self.memory)))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What came of it."""

    places: dict[str, Room] = field(default_factory=dict)
    """By process: its machine, as that was before anything was placed."""
    missing: str = ""
    """What there is not enough of, in one sentence; "": everything has its place."""


def fit(needs: Mapping[str, Needs], rooms: Sequence[Room]) -> Fit:
    """A machine for each process, in the order of `needs`: close together, this machine first, GPUs for who wants one.

    The same needs and rooms give the same places, so that what was shown is what is done.
    """
    left = {room.node: room for room in rooms}
    first = dict(left)
    used: set[str] = set()
    places: dict[str, Room] = {}
    homeless: list[str] = []
    # the large ones first: a small one finds a corner everywhere
    for name in sorted(needs, key=lambda name: (-needs[name].gpus, -needs[name].cpus, -needs[name].memory)):
        wanted = needs[name]
        fitting = [room for room in left.values() if room.takes(wanted)]
        if not fitting:
            homeless.append(name)
            continue
        chosen = min(fitting, key=lambda room: _preference(room, wanted, used))
        left[chosen.node] = chosen.without(wanted)
        used.add(chosen.node)
        places[name] = first[chosen.node]
    places = {name: places[name] for name in needs if name in places}
    return Fit(places=places, missing=_missing(homeless, needs, list(left.values())) if homeless else "")


def _preference(room: Room, wanted: Needs, used: set[str]) -> tuple[bool, bool, bool, float, str]:
    wastes_gpu = bool(room.gpus) and not wanted.gpus
    return (wastes_gpu, not room.here, room.node not in used, -room.cpus, room.node)


def _missing(homeless: list[str], needs: Mapping[str, Needs], left: list[Room]) -> str:
    worst = next(name for name in needs if name in homeless)
    wanted = needs[worst]
    most = max(left, key=lambda room: (room.gpus if wanted.gpus else 0, room.cpus, room.memory), default=None)
    has = f"the roomiest of {len(left)} nodes, {most.name}, has {most} left" if most else "Ray has no node"
    others = f" and {len(homeless) - 1} more" if len(homeless) > 1 else ""
    return (
        f"{worst}{others} of {len(needs)} processes have no place: {worst} needs {wanted}, and {has}; add nodes, or "
        "lower train.ranks, train.threads, engine.replicas or engine.threads"
    )
