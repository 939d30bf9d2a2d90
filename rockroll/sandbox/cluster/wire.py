"""What nodes, clients and the hub of a cluster say to each other, as frozen Structs.

In and out: plain values, so that msgpack carries them. Leaves the boxes' own methods, which go through the hub unread,
to sandbox/wire/.

    node   ──► node.join (stream)   Join → Told…: who is gone, whether to drain; open for as long as it is a member
           ──► node.report          Report: boxes that came, changed or went, and how it is; pushed at each change
           ──► node.leave           its boxes stay, and are the cluster's no more
           ──► image.source (stream) ImageWant → ImageSource, when one is free; open while the image is on its way
           ──► image.got            ImageWant: it is there. These two over a connection that the node has as a client
    client ──► cluster.watch        Empty → list[NodeView]: at once, then at every change of a node's state
           ──► cluster.place        Want → Placed; cluster.settle: Settle, once the box is there or is not
           ──► cluster.where        Where → Placed: which node holds a box
           ──► cluster.drain        Drain; cluster.bye: this process ends, and what it owns may go
"""

from __future__ import annotations

from typing import Literal

from rockroll.sandbox.wire import Empty, Struct

NodeState = Literal["up", "suspect", "draining", "returning"]
"""suspect: nothing was heard of it for some seconds; nothing is placed there until it is heard again. returning: the
hub was started anew, had it before, and waits for it; what is asked of it is answered when it is there."""


class BoxRow(Struct, frozen=True):
    """What the hub knows of a box."""

    id: str
    name: str
    account: str
    """Whom it is counted for; "" of a warm one."""
    cpus: float
    memory: int
    pids: int
    image: str


class Load(Struct, frozen=True):
    """How a node is now."""

    room: int
    """More boxes of the default kind that its host can hold, by its own account (node/limits.py)."""
    limit: int
    """Starts that it takes on at once (admission)."""
    busy: int
    """Those under way and waiting."""
    warm: dict[str, int] = {}
    """Boxes that stand ready, by kind."""


class Join(Struct, frozen=True):
    name: str
    version: str
    """Of rockroll: the same on all nodes."""
    cpus: float
    memory: int
    """Bytes that may be granted, the node's own over-commitment included."""
    pids: int
    boxes: list[BoxRow]
    images: list[str]
    clients: list[bytes]
    """Trunks of clients that own boxes here."""
    load: Load


class Told(Struct, frozen=True):
    """The first one says that the node is a member."""

    gone: list[bytes] = []
    """Clients that will not come back: what they own is to go."""
    drain: bool | None = None


class Report(Struct, frozen=True):
    put: list[BoxRow]
    gone: list[str]
    load: Load
    images: list[str] | None = None
    """Names and ids of those that there are; None: as they were."""


class NodeView(Struct, frozen=True):
    """A node as the hub shows it."""

    name: str
    trunk: bytes
    state: NodeState
    boxes: int = 0
    cpus: float = 0
    cpus_granted: float = 0
    memory: int = 0
    memory_granted: int = 0
    room: int = 0
    silent_s: float = 0
    """Seconds since it was heard."""


class Want(Struct, frozen=True):
    """A box that is to be placed."""

    owner: str
    """For the fair share: the label `owner`, or the client."""
    cpus: float
    memory: int
    pids: int
    image: str
    kind: str = ""
    """Boxes of one kind are made alike (node/warm.py): a warm one serves."""
    without: list[str] = []
    """Nodes that have refused it."""
    only: list[str] | None = None
    """Nodes that may have it; None: any."""
    wait: bool = False
    """Wait for room rather than be refused."""


class Placed(Struct, frozen=True):
    node: str
    trunk: bytes
    ticket: int = 0


class ImageWant(Struct, frozen=True):
    """An image that a node lacks."""

    node: str
    image: str
    """A name, or an id."""
    without: list[str] = []
    """Nodes that could not give it."""


class ImageSource(Struct, frozen=True):
    node: str | None
    """None: no node has it, or can give it; the node that asked is the one to get it elsewhere."""


class Settle(Struct, frozen=True):
    ticket: int


class Where(Struct, frozen=True):
    id: str


class Drain(Struct, frozen=True):
    node: str
    on: bool = True


BODIES: dict[str, type[Struct]] = {
    "node.join": Join,
    "node.report": Report,
    "node.leave": Empty,
    "cluster.watch": Empty,
    "cluster.nodes": Empty,
    "cluster.place": Want,
    "cluster.settle": Settle,
    "cluster.where": Where,
    "cluster.drain": Drain,
    "image.source": ImageWant,
    "image.got": ImageWant,
    "cluster.bye": Empty,
}
