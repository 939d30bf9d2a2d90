"""What Ray's autoscaler is asked to have: nothing while there is room, else nodes for the sandboxes that wait."""

from __future__ import annotations

from rockroll.placement.on_ray.demand import Has, Waits, bundles

GB = 2**30
HEAD = Has(cpus=4, memory=8 * GB, head=True)
FULL = Has(cpus=16, memory=64 * GB, boxes=40, room=200, cpus_left=0.5, memory_left=90 * GB)
FREE = Has(cpus=16, memory=64 * GB, boxes=10, room=200, cpus_left=300, memory_left=90 * GB)


def waits(count: int) -> Waits:
    return Waits(count=count, cpus=1, memory=GB)


def test_nobody_who_waits_asks_for_nothing() -> None:
    assert bundles([HEAD, FULL], []) == [] == bundles([HEAD, FULL], [waits(0)])


def test_a_start_that_is_only_slow_asks_for_nothing() -> None:
    assert bundles([HEAD, FULL, FREE], [waits(50)]) == []


def test_what_waits_asks_for_what_there_is_and_as_many_more_nodes_as_it_would_fill() -> None:
    worker = {"CPU": 16.0, "memory": 64.0 * GB}
    head = {"CPU": 4.0, "memory": 8.0 * GB}
    assert bundles([HEAD, FULL], [waits(1)]) == [head, worker, worker]
    assert bundles([HEAD, FULL], [waits(40)]) == [head, worker, worker]
    assert bundles([HEAD, FULL], [waits(30), waits(11)]) == [head, worker, worker, worker]


def test_no_node_with_a_gpu_is_asked_for_where_there_are_others() -> None:
    gpu = Has(cpus=8, memory=32 * GB, gpus=8)
    asked = bundles([HEAD, gpu, FULL], [waits(1)])
    assert [each.get("GPU", 0) for each in asked] == [0, 8, 0, 0]


def test_a_cluster_of_a_head_alone_asks_for_another_like_it() -> None:
    assert bundles([HEAD], [waits(1)]) == [HEAD.bundle, HEAD.bundle]


def test_a_host_that_is_full_by_its_own_account_is_full() -> None:
    no_room = Has(cpus=16, memory=64 * GB, boxes=4, room=0, cpus_left=300, memory_left=90 * GB)
    assert len(bundles([no_room], [waits(5)])) == 3
