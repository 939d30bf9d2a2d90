"""placement.needs: which machine gets which process; controller.needs: what a recipe's processes need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rockroll.controller.config import RunConfig
from rockroll.controller.needs import needs
from rockroll.engine.config import EngineConfig
from rockroll.placement.needs import Needs, Room, fit
from rockroll.rollout.config import TaskConfig
from rockroll.train.config import TrainConfig


def room(node: str, cpus: float, gpus: float = 0, *, here: bool = False) -> Room:
    return Room(node=node, name=node, cpus=cpus, gpus=gpus, memory=10**9, here=here)


def places(wanted: dict[str, Needs], *rooms: Room) -> dict[str, str]:
    return {name: found.node for name, found in fit(wanted, rooms).places.items()}


def test_this_machine_comes_first_and_others_take_what_is_left() -> None:
    wanted = {"trainer-0": Needs(), "engine-0": Needs(), "engine-1": Needs()}
    assert places(wanted, room("a", 4), room("b", 2, here=True)) == {"trainer-0": "b", "engine-0": "b", "engine-1": "a"}


def test_processes_stay_together_where_they_can() -> None:
    wanted = {"trainer-0": Needs(), "trainer-1": Needs()}
    assert len(set(places(wanted, room("a", 2), room("b", 3), room("c", 2)).values())) == 1


def test_a_node_with_a_gpu_is_left_to_who_needs_one() -> None:
    wanted = {"engine-0": Needs(), "trainer-0": Needs(gpus=1)}
    assert places(wanted, room("gpu", 8, 2, here=True), room("cpu", 1)) == {"engine-0": "cpu", "trainer-0": "gpu"}


def test_two_share_a_gpu() -> None:
    wanted = {"trainer-0": Needs(gpus=0.6), "engine-0": Needs(gpus=0.4)}
    assert set(places(wanted, room("a", 8, 1)).values()) == {"a"}


def test_what_is_missing_is_said_in_numbers() -> None:
    found = fit({"trainer-0": Needs(cpus=2), "trainer-1": Needs(cpus=2)}, [room("a", 2), room("b", 1)])
    assert found.missing.startswith(
        "trainer-1 of 2 processes have no place: trainer-1 needs 2 CPUs, and the roomiest of 2 nodes, b, has 1 CPU"
    )


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2)), max_size=8),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=5),
)
def test_no_node_is_given_more_than_it_has(wanted: list[tuple[int, int]], rooms: list[tuple[int, int]]) -> None:
    all_needs = {str(i): Needs(cpus=cpus, gpus=gpus) for i, (cpus, gpus) in enumerate(wanted)}
    found = fit(all_needs, [room(f"n{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(rooms)])
    for i, (cpus, gpus) in enumerate(rooms):
        there = [all_needs[name] for name, each in found.places.items() if each.node == f"n{i}"]
        assert sum(each.cpus for each in there) <= cpus and sum(each.gpus for each in there) <= gpus
    assert bool(found.missing) == (len(found.places) < len(all_needs))


def recipe(**train: object) -> RunConfig:
    return RunConfig(
        name="x",
        steps=1,
        task=TaskConfig(env="rockroll:frozen_lake"),
        engine=EngineConfig(replicas=2),
        train=TrainConfig(ranks=2, **train),  # type: ignore[arg-type]
    )


def test_every_process_of_a_recipe_is_counted() -> None:
    assert list(needs(recipe(), None)) == ["trainer-0", "trainer-1", "engine-0", "engine-1"]
    assert list(needs(recipe(advantage="gae"), None))[2:4] == ["critic-0", "critic-1"]
    assert list(needs(recipe(), None, train=False)) == ["engine-0", "engine-1"]


def test_gpus_are_shared_where_there_are_too_few() -> None:
    assert [each.gpus for each in needs(recipe(), None).values()] == [0, 0, 0, 0]
    assert [each.gpus for each in needs(recipe(), None, gpus=4).values()] == [1, 1, 1, 1]
    assert [each.gpus for each in needs(recipe(), None, gpus=1).values()] == [
        0.5,
        0.5,
        0.5,
        0.5,
    ]  # the share is left open
    assert [each.gpus for each in needs(recipe(device="cpu"), None, gpus=2).values()] == [0, 0, 1, 1]
