"""What SandboxConfig promises: plain values in, and a sentence that helps where one cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rockroll.sandbox.config import DEFAULT_IMAGE, Mount, SandboxConfig


def test_the_default_is_a_small_box_without_network() -> None:
    config = SandboxConfig()
    assert (config.network, config.cpus, config.memory_bytes, config.pids) == ("none", 1.0, 512 * 2**20, 256)
    assert (config.image_name, config.ttl_s, config.parsed_mounts) == (DEFAULT_IMAGE, None, [])


def test_values_are_written_as_people_write_them() -> None:
    assert (SandboxConfig(disk="2g").disk_bytes, SandboxConfig().disk_bytes) == (2 * 2**30, None)
    config = SandboxConfig(memory="1.5g", ttl="1h", mounts=("/data:/mnt/data:ro", "/out:/out"))
    assert (config.memory_bytes, config.ttl_s) == (1536 * 2**20, 3600.0)
    assert config.parsed_mounts == [Mount("/data", "/mnt/data", True), Mount("/out", "/out", False)]


def test_it_cannot_change_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SandboxConfig().pids = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("memory", "64k", "memory: 64k is under the 6 MB that a shell needs; try memory: 64m"),
        ("memory", "much", "memory: a size is digits and one of k, m, g, t, as in 512m; got 'much'"),
        ("cpus", 0, "cpus: from 0.01"),
        ("cpus", float("nan"), "cpus: from 0.01"),
        ("pids", 1, "pids: from 4"),
        ("disk", "1m", "disk: 1m is under the 16 MB that a file system needs; try disk: 1g"),
        ("disk", "much", "disk: a size is digits and one of k, m, g, t, as in 512m; got 'much'"),
        ("snapshot", "a/b", "snapshot: the name of a snapshot"),
        ("ttl", "soon", "ttl: a duration is digits"),
        ("ttl", -1, "ttl: a duration above zero"),
        ("network", "host", 'network: "none" or "open"'),
        ("name", "a/b", "name: at most 63 letters"),
        ("env", {"1A": "x"}, "env: a name is letters"),
        ("env", {"A": "x\0y"}, "NUL byte"),
        ("labels", {"rockroll.home": "x"}, "reserved"),
        ("mounts", ("data:/mnt",), "two absolute paths; got 'data:/mnt'"),
        ("mounts", ("/data:/mnt:rx",), "mounts: SRC:DST"),
        ("mounts", ("/data:/",), "below /"),
        ("mounts", ("/data:/mnt/../..",), "without .."),
    ],
)
def test_a_wrong_value_is_named_with_the_rule(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        SandboxConfig(**{field: value})
    assert said in str(caught.value)
