"""Which node gives an image to one that lacks it.

In: who has which image, nodes that ask, and when they have it or have given up. Out: a node to copy it from, now or
when one is free; or None: nobody has it, and who asked gets it elsewhere. Pure. Leaves the copying to node/bring.py.

    ask ──┬─ a node has it and gives to fewer than GIVES ──► that node
          ├─ those that have it are all giving, or another one is getting it ──► waits
          └─ nobody has it and nobody is getting it ──► None
    end: what was given is free again, and whoever waits is looked at; one that has got the image gives it, too

So an image leaves its registry once, and then goes from node to node, to twice as many each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from functools import lru_cache

from rockroll.sandbox.cluster.wire import ImageWant

GIVES = 2
"""Copies of images that one node gives at a time."""
HUB = "docker.io"


class Ask:
    """An image that a node lacks. done: called with its source."""

    def __init__(self, want: ImageWant, done: Callable[[str | None], None]) -> None:
        self.want, self.done = want, done
        self.given = False
        self.source: str | None = None


class Sources:
    """stores: what each node that is heard has, by its name, at any time."""

    def __init__(self, stores: Callable[[], Mapping[str, Set[str]]]) -> None:
        self._stores = stores
        self._asks: list[Ask] = []

    def ask(self, want: ImageWant, done: Callable[[str | None], None]) -> Ask:
        """`done` may be called at once."""
        ask = Ask(want, done)
        self._asks.append(ask)
        self.look()
        return ask

    def end(self, ask: Ask) -> None:
        """The node has the image, has given it up, or is gone. A second time nothing happens."""
        if ask in self._asks:
            self._asks.remove(ask)
            self.look()

    def look(self) -> None:
        """There may be a source now: a node has got an image, or is gone."""
        stores = self._stores()
        giving = Counter(ask.source for ask in self._asks if ask.source is not None)
        for ask in [each for each in self._asks if not each.given]:
            want = ask.want
            have = [
                name
                for name, images in stores.items()
                if name != want.node and name not in want.without and holds(images, want.image)
            ]
            free = [name for name in have if giving[name] < GIVES]
            getting = any(each.given and each.want.image == want.image for each in self._asks)
            if not free and (have or getting):
                continue
            ask.given = True
            if free:
                ask.source = min(free, key=lambda name: (giving[name], name))
                giving[ask.source] += 1
            ask.done(ask.source)


@lru_cache(maxsize=4096)
def names_of(image: str) -> tuple[str, ...]:
    """What a store may call an image that somebody names so: in full, with its registry and tag."""
    first, _, rest = image.partition("/")
    tagged = image if "@" in image or ":" in image.rpartition("/")[2] else f"{image}:latest"
    if rest and ("." in first or ":" in first or first == "localhost"):
        return image, tagged
    return image, f"localhost/{tagged}", f"{HUB}/{tagged}" if rest else f"{HUB}/library/{tagged}"


def holds(images: Set[str], image: str) -> bool:
    return not images.isdisjoint(names_of(image))


def pullable(image: str) -> bool:
    """Whether a registry may have it: not what was built here, nor an id."""
    is_id = len(image) == 64 and all(each in "0123456789abcdef" for each in image)
    return not is_id and not image.startswith("localhost/")


def stores(nodes: Iterable[tuple[str, str, Set[str]]]) -> dict[str, Set[str]]:
    """Of (name, state, images): of the nodes that are heard; one that is draining gives what it has."""
    return {name: images for name, state, images in nodes if state != "suspect"}
