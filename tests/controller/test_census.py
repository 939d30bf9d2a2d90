"""What processes and nodes of a run report: each number says which node it is of."""

from __future__ import annotations

import asyncio
from typing import Any

from rockroll.controller.census import Census, of_engines, of_nodes, of_processes
from rockroll.engine.api import Stats
from rockroll.placement.usage import Usage
from rockroll.sandbox.wire import NodeMetrics

HERE = Usage("engine-0", "left", 12.5, 2**30)
STATS = Stats(running=3, waiting=1, slots=4, kv_use=0.5, preemptions=2, progress=99, loading=False)


def test_a_process_has_its_cpu_seconds_and_memory_under_its_node() -> None:
    cpu, memory = of_processes([HERE])
    assert cpu.labels == memory.labels == {"process": "engine-0", "node": "left"}
    assert (cpu.value, cpu.counter, memory.value, memory.counter) == (12.5, True, 2**30, False)


def test_an_engine_has_its_load_under_the_node_of_its_process() -> None:
    found = {each.name: each for each in of_engines({"engine-0": STATS}, {"engine-0": "left"})}
    assert found["engine_running"].value == 3 and found["engine_steps"].value == 99
    assert {each.labels["node"] for each in found.values()} == {"left"}


def test_a_node_has_its_sandboxes_by_state() -> None:
    node = NodeMetrics(node="right", sandboxes={"running": 5}, limit=4, running=1, waiting={"a": 2, "b": 1}, took={})
    found = {each.name: each for each in of_nodes([node])}
    assert found["sandboxes"].labels == {"node": "right", "state": "running"} and found["sandboxes"].value == 5
    assert found["admission_waiting"].value == 3


class Processes:
    def usage(self) -> list[Usage]:
        return [HERE]


async def made() -> Census:
    processes: Any = Processes()
    return Census(processes, None, sandboxes=False)


async def test_it_is_asked_from_another_thread() -> None:
    assert [each.value for each in await asyncio.to_thread(await made())] == [12.5, 2**30]


def test_it_says_nothing_once_the_run_has_ended() -> None:
    assert asyncio.run(made())() == []
