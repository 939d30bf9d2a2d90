"""The simulated cluster: its boxes come up, are spread, come and go, and are replaced when nodes are lost."""

from __future__ import annotations

import asyncio

import pytest

from rockroll.bench import scale
from rockroll.errors import UsageError


def test_every_box_comes_up_no_faster_than_the_nodes_could_alone() -> None:
    result = asyncio.run(scale.run(nodes=10, boxes=300, rate=14.0))
    figures, alone = result["figures"], result["baselines"]
    assert alone["nodes_alone_up_s"] == pytest.approx(300 / 140)
    assert 0.7 * alone["nodes_alone_up_s"] < figures["up_s"] < 2 * alone["nodes_alone_up_s"]
    assert figures["fullest_node_boxes"] - figures["emptiest_node_boxes"] <= 1
    assert 0 < figures["storm_hub_busy"] < 1 and figures["alive_boxes_per_s"] == pytest.approx(2.5, rel=0.1)
    assert figures["lost_boxes"] > 0 and figures["replaced_after_s"] >= scale.SUSPECT_S


def test_a_decision_at_ten_thousand_alive_takes_less_than_five_milliseconds() -> None:
    figures = asyncio.run(scale.run())["figures"]
    assert figures["alive_scheduling_ms_per_box"] < 5 and figures["storm_scheduling_ms_per_box"] < 5


@pytest.mark.parametrize(("nodes", "boxes"), [(1, 10), (2, 0), (2, 300)])
def test_what_does_not_fit_is_refused(nodes: int, boxes: int) -> None:
    with pytest.raises(UsageError, match="256 boxes on each"):
        asyncio.run(scale.run(nodes, boxes))
