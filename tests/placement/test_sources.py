"""Who gives an image to whom: one registry pull, then from node to node, no node giving to more than two at a time."""

from __future__ import annotations

import pytest

from rockroll.sandbox.cluster.sources import GIVES, Ask, Sources, holds, names_of, pullable, stores
from rockroll.sandbox.cluster.wire import ImageWant


class Cluster:
    def __init__(self, **images: str) -> None:
        """Node → its one image, "" for none."""
        self.stores = {name: {image} - {""} for name, image in images.items()}
        self.sources = Sources(lambda: self.stores)
        self.given: dict[str, str | None] = {}

    def ask(self, node: str, image: str = "localhost/a:1", without: tuple[str, ...] = ()) -> Ask:
        def done(source: str | None) -> None:
            self.given[node] = source

        return self.sources.ask(ImageWant(node=node, image=image, without=list(without)), done)

    def got(self, ask: Ask) -> None:
        self.stores[ask.want.node].add(ask.want.image)
        self.sources.look()
        self.sources.end(ask)


def test_a_node_gives_to_two_at_a_time_and_those_give_on() -> None:
    cluster = Cluster(a="localhost/a:1", **dict.fromkeys("bcdefg", ""))
    asks = {name: cluster.ask(name) for name in "bcdefg"}
    assert GIVES == 2 and cluster.given == {"b": "a", "c": "a"}
    cluster.got(asks["b"])
    assert cluster.given == {"b": "a", "c": "a", "d": "b", "e": "b", "f": "a"}
    cluster.got(asks["c"])
    assert cluster.given["g"] == "c"


def test_what_nobody_has_is_fetched_by_one_and_the_others_wait_for_it() -> None:
    cluster = Cluster(a="", b="", c="")
    first = cluster.ask("a", "docker.io/library/x:1")
    cluster.ask("b", "docker.io/library/x:1")
    assert cluster.given == {"a": None}
    cluster.got(first)
    assert cluster.given == {"a": None, "b": "a"}


def test_when_the_one_that_fetches_gives_up_the_next_one_tries() -> None:
    cluster = Cluster(a="", b="")
    first = cluster.ask("a")
    cluster.ask("b")
    cluster.sources.end(first)
    cluster.sources.end(first)
    assert cluster.given == {"a": None, "b": None}


def test_a_node_that_could_not_give_is_not_asked_again() -> None:
    cluster = Cluster(a="localhost/a:1", b="localhost/a:1", c="")
    cluster.sources.end(cluster.ask("c"))
    assert cluster.given["c"] == "a"
    cluster.sources.end(cluster.ask("c", without=("a",)))
    assert cluster.given["c"] == "b"
    cluster.ask("c", without=("a", "b"))
    assert cluster.given["c"] is None


def test_a_giver_that_is_lost_frees_who_waited_for_it() -> None:
    cluster = Cluster(a="localhost/a:1", b="", c="", d="")
    asks = [cluster.ask(name) for name in "bcd"]
    assert "d" not in cluster.given
    del cluster.stores["a"]
    for ask in asks[:2]:  # their copies broke off
        cluster.sources.end(ask)
    assert cluster.given["d"] is None


def test_a_node_that_is_not_heard_gives_nothing_and_a_draining_one_does() -> None:
    nodes = [("a", "up", {"x"}), ("b", "draining", {"x"}), ("c", "suspect", {"x"})]
    assert set(stores(nodes)) == {"a", "b"}


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ("python:3.12", "docker.io/library/python:3.12"),
        ("python", "docker.io/library/python:latest"),
        ("team/tool:2", "docker.io/team/tool:2"),
        ("mine", "localhost/mine:latest"),
        ("localhost/mine", "localhost/mine:latest"),
        ("registry:5000/a/b", "registry:5000/a/b:latest"),
        ("0" * 64, "0" * 64),
    ],
)
def test_an_image_is_known_by_any_name_that_a_store_would_know_it_by(asked: str, held: str) -> None:
    assert held in names_of(asked)
    assert holds({held, "another:1"}, asked) and not holds({"another:1"}, asked)


def test_what_was_built_here_and_what_is_named_by_its_id_is_in_no_registry() -> None:
    assert [pullable(image) for image in ("python", "quay.io/a/b", "localhost/a:1", "0" * 64)] == [
        True, True, False, False,
    ]  # fmt: skip
