"""What a host can hold: every limit is known before a box is made, and says its cure."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from rockroll.sandbox.boxes import grant
from rockroll.sandbox.boxes.grant import Granted
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import locks
from rockroll.sandbox.container.locks import Locks
from rockroll.sandbox.node import limits
from rockroll.sandbox.node.limits import Facts
from rockroll.sandbox.node.node_config import Limits

GIB = 2**30
ROOMY = Facts(
    locks=Locks(16384, 0),
    pids_max=4_194_304,
    pids_rule="kernel.pid_max",
    threads=200,
    files_max=1_048_576,
    files=30,
    namespaces_max=200_000,
    namespaces_rule="user.max_user_namespaces",
    pipe_pages_max=None,
    memory=256 * GIB,
    memory_free=200 * GIB,
    disk_free=500 * GIB,
    inodes_free=10**8,
    disk_at="/var/lib/containers",
)
BOX = grant.of(SandboxConfig())


NONE, USUAL = Granted(), Limits()


def refusal(
    facts: Facts, granted: Granted = NONE, alive: int = 0, policy: Limits = USUAL, making: int = 0
) -> str | None:
    return limits.refusal(limits.rooms(facts, granted, BOX, policy, alive, making))


def test_a_roomy_host_takes_another_box() -> None:
    assert refusal(ROOMY) is None


@pytest.mark.parametrize(
    ("facts", "granted", "said"),
    [
        ({"locks": Locks(2048, 2048)}, NONE, "Podman locks: num_locks allows 2,048, 2,048 are taken .* renumber"),
        ({"pids_max": 32768}, Granted(pids=8 * 32768), "pids: kernel.pid_max × limits.pids.* 262,144, .*fewer pids"),
        ({"threads": 4_194_000}, NONE, "processes: kernel.pid_max allows .* end processes"),
        ({"files_max": 20_000, "files": 20_000}, NONE, "open files: .* hard nofile"),
        ({"namespaces_max": 0}, NONE, "namespaces: user.max_user_namespaces allows 0, .* sysctl -w user.max_user_n"),
        ({"pipe_pages_max": 79}, NONE, "pipe pages: fs.pipe-user-pages-hard allows 79, .* needs 80"),
        ({"memory": 1 * GIB}, Granted(memory=32 * GIB), "memory limits: .* allows 32g, .* needs 512m; .* less mem"),
        ({"memory_free": 200 << 20}, NONE, "free memory: what is free now less limits.keep_memory"),
        ({"disk_free": 512 << 20}, NONE, "disk: what is free under /var/lib/containers"),
        ({"inodes_free": 10}, NONE, "inodes: what is free under"),
    ],
)  # fmt: skip
def test_each_limit_is_refused_by_its_name_with_the_cure(facts: dict, granted: Granted, said: str) -> None:
    found = refusal(ROOMY._replace(**facts), granted)
    assert found is not None and re.search(said, found), found
    assert found.startswith("this host has no room for another sandbox: ")


def test_overcommitment_is_configurable() -> None:
    host = ROOMY._replace(memory=1 * GIB, pids_max=32768)
    assert refusal(host, Granted(memory=2 * GIB)) is None
    strict = Limits(memory_overcommit=1, pids_overcommit=1)
    assert "memory limits" in (refusal(host, Granted(memory=2 * GIB), policy=strict) or "")
    assert "pids" in (refusal(host, Granted(pids=32768), policy=strict) or "")


def test_files_are_counted_for_boxes_that_have_not_opened_theirs() -> None:
    host = ROOMY._replace(files_max=20_000, files=100)
    assert refusal(host, alive=1990) is None
    assert "open files" in (refusal(host, alive=2010) or "")


def test_boxes_that_were_promised_are_counted_before_they_are_there() -> None:
    host = ROOMY._replace(locks=Locks(2048, 0))
    assert refusal(host, making=2047) is None
    assert "Podman locks" in (refusal(host, making=2048) or "")
    assert "processes" in (refusal(ROOMY._replace(pids_max=1000), making=100) or "")


def test_the_limit_that_binds_first_is_named_with_its_number() -> None:
    found = limits.binding(limits.rooms(ROOMY._replace(pids_max=32768), Granted(), BOX, Limits(), 0))
    assert (found[0].name, found[0].boxes) == ("pids", 8 * 32768 // 256)
    assert found[0].boxes <= found[1].boxes


def test_the_facts_of_this_host_are_read() -> None:
    facts = limits.read(Path("/var/lib/containers"))
    assert facts.pids_max <= int(Path("/proc/sys/kernel/pid_max").read_text())
    assert 0 < facts.threads < facts.pids_max
    assert 0 < facts.memory_free <= facts.memory
    assert 2 < facts.files < facts.files_max
    assert facts.namespaces_max > 0 and facts.disk_free > 0 and facts.inodes_free > 0


def memory_of_locks(mutex: int, groups: int, taken: list[int]) -> bytes:
    head = struct.pack("<H6x", 0x87D1) + bytes(mutex) + struct.pack("<II", groups, groups * 32)
    return head + b"".join(struct.pack("<I4x", bits) + bytes(32 * mutex) for bits in taken)


@pytest.mark.parametrize("mutex", [40, 48])
def test_podmans_locks_are_counted_in_its_shared_memory(tmp_path: Path, mutex: int) -> None:
    file = tmp_path / "libpod_lock"
    file.write_bytes(memory_of_locks(mutex, 2, [0b1011, 1 << 31]))
    assert locks.read(file) == Locks(64, 4)
    assert locks.wanted((), file) == 64, "Podman refuses to run with another number"


def test_a_memory_of_another_form_is_not_guessed_at(tmp_path: Path) -> None:
    file = tmp_path / "libpod_lock"
    file.write_bytes(b"\0" * 100)
    assert locks.read(file) is None and locks.read(tmp_path / "none") is None


def test_without_locks_yet_the_number_is_the_hosts_own(tmp_path: Path) -> None:
    usual, drop_in = tmp_path / "containers.conf", tmp_path / "locks.conf"
    usual.write_text("[engine]\nnum_locks = 4096\n")
    none = tmp_path / "none"
    assert locks.wanted((none,), none) == locks.DEFAULT
    assert locks.wanted((usual,), none) == 4096
    drop_in.write_text("[engine]\nnum_locks = 16384\n")
    assert locks.wanted((usual, drop_in), none) == 16384
    drop_in.write_text("not toml")
    assert locks.wanted((usual, drop_in), none) == 4096
