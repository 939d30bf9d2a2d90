"""A storm over three nodes: it spreads, it is measured both ways, and nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockroll.bench import cluster_storm
from rockroll.errors import UsageError


@pytest.mark.slow
def test_a_storm_spreads_over_three_nodes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox_image: str
) -> None:
    (tmp_path / "homes").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "homes"))
    result = asyncio.run(cluster_storm.run(6))
    figures = result["figures"]
    assert figures["storm_fullest_node_boxes"] == figures["storm_emptiest_node_boxes"] == 2
    one = result["baselines"]["storm_on_one_node_per_s"]
    assert figures["storm_over_three_nodes_per_s"] == pytest.approx(figures["storm_three_to_one_ratio"] * one)
    assert list((tmp_path / "homes").iterdir()) == []
    assert not [line for line in _command_lines() if str(tmp_path / "homes") in line], "wardens end with their nodes"


def _command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def test_fewer_than_nodes_are_no_storm() -> None:
    with pytest.raises(UsageError, match="at least 3 sandboxes"):
        asyncio.run(cluster_storm.run(2))
