"""The time line's file: readable whenever the run died, gone on with, bounded, cheap; lanes that do not overlap."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from rockroll.observe.trace import Lanes, Trace
from tests.small_disk import SmallDisk, small_disk

__all__ = ["small_disk"]

MOST = 2**20


def killed(path: Path, events: int, most: int = MOST) -> None:
    """Writes so many spans, and no end."""
    trace = Trace(path, most)
    for i in range(events):
        trace.span(1, 0, f"e{i}", float(i), i + 0.5, {"n": i})
    trace.flush()


def names(path: Path) -> list[str]:
    """As a viewer reads it: the array may lack its end."""
    text = path.read_text()
    return [event["name"] for event in json.loads(text if text.endswith("]\n") else (text or "[") + "]")]


def test_a_run_that_was_killed_leaves_all_events_but_the_end_of_the_array(tmp_path: Path) -> None:
    killed(tmp_path / "t", 3)
    assert names(tmp_path / "t") == ["e0", "e1", "e2"]


def test_a_run_that_ended_leaves_json(tmp_path: Path) -> None:
    with Trace(tmp_path / "t", MOST) as trace:
        trace.span(1, 2, "phase", 10.0, 10.25, {"step": 4})
        trace.instant(1, 0, "weights 3", 11.0, {"version": 3})
    span, instant = json.loads((tmp_path / "t").read_text())
    assert span == {
        "name": "phase", "ph": "X", "ts": 10_000_000, "dur": 250_000, "pid": 1, "tid": 2, "args": {"step": 4},
    }  # fmt: skip
    assert instant["ph"] == "i" and instant["ts"] == 11_000_000


def test_nothing_happened_is_json_too(tmp_path: Path) -> None:
    Trace(tmp_path / "t", MOST).close()
    assert json.loads((tmp_path / "t").read_text()) == []


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for _ in range(2):
        with Trace(tmp_path / "t", MOST) as trace:
            trace.span(1, 0, "e", 0.0, 1.0, {})
    assert json.loads((tmp_path / "t").read_text())[1]["name"] == "e"


def test_an_event_that_a_death_tore_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    killed(tmp_path / "whole", 3)
    whole = (tmp_path / "whole").read_bytes()
    for n in range(len(whole) + 1):
        (tmp_path / "t").write_bytes(whole[:n])
        killed(tmp_path / "t", 1)
        found = names(tmp_path / "t")
        assert found[-1] == "e0" and found[:-1] == ["e0", "e1", "e2"][: len(found) - 1]


def test_it_stops_at_its_bound_and_says_so_once(tmp_path: Path) -> None:
    for _ in range(2):
        with Trace(tmp_path / "t", 50_000) as trace:
            for i in range(2_000):
                trace.span(1, 0, "e", float(i), i + 1.0, {})
            assert not trace.open
    found = json.loads((tmp_path / "t").read_text())
    assert (tmp_path / "t").stat().st_size < 50_300
    assert [event["name"] for event in found if event["name"] != "e"] == [
        f"the time line ends here: records.trace_mb is {50_000 / 2**20:g}"
    ]


def test_no_bytes_are_no_file(tmp_path: Path) -> None:
    with Trace(tmp_path / "t", 0) as trace:
        trace.span(1, 0, "e", 0.0, 1.0, {})
    assert not (tmp_path / "t").exists()


def test_a_full_disk_ends_the_time_line_and_nothing_else(small_disk: SmallDisk) -> None:
    small_disk.leave(8192)
    with Trace(small_disk.path / "t", MOST) as trace:
        for _ in range(1000):
            trace.span(1, 0, "e", 0.0, 1.0, {})
        assert not trace.open
    assert set(names(small_disk.path / "t")) <= {"e"}


def test_spans_of_a_lane_never_overlap_and_lanes_are_as_few_as_run_at_once() -> None:
    draw = random.Random(0)
    for size in (1, 2, 5, 200):
        spans: list[tuple[float, float]] = []
        for _ in range(size):
            begun = float(draw.randrange(50))
            spans.append((begun, begun + draw.randrange(1, 30)))
        lanes, taken = Lanes(), dict[int, list[tuple[float, float]]]()
        for begun, ended in sorted(spans, key=lambda span: span[1]):
            lane, new = lanes.place(begun, ended)
            assert new == (lane not in taken)
            assert all(begun >= before for _, before in taken.get(lane, []))
            taken.setdefault(lane, []).append((begun, ended))
        most = max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans)
        assert len(taken) == most


def test_an_event_costs_microseconds(tmp_path: Path) -> None:
    lanes, spent = Lanes(), dict.fromkeys(("pool", "ours", "env", "agent", "engine"), 1.5)
    args: dict[str, Any] = {"id": "train-3-0-0-57", "outcome": "ok", "reward": 1.0, "turns": 4, "spent_s": spent}
    for _ in range(4096):
        lanes.place(0.0, 1.0)
    with Trace(tmp_path / "t", 64 * MOST) as trace:
        begun = time.process_time()
        for i in range(10_000):
            lane, _ = lanes.place(1.0 + i, 2.0 + i)
            trace.span(2, lane, "group 3: ok", 1.0 + i, 2.0 + i, args)
        each = (time.process_time() - begun) / 10_000
    assert each < 100e-6, f"{each * 1e6:.1f} µs"
    print(f"{each * 1e6:.1f} µs an event")


@pytest.mark.parametrize("where", ["a folder that is not there", "a file that may not be written"])
def test_where_it_cannot_be_written_the_run_goes_on(where: str, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "t" if where == "a folder that is not there" else tmp_path
    with Trace(path, MOST) as trace:
        trace.span(1, 0, "e", 0.0, 1.0, {})
        assert not trace.open
