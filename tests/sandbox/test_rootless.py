"""What an ordinary user with subordinate ids gets: the same sandboxes, and the truth about limits.

As root the test makes the user `rockroll-test` and runs as it; otherwise it runs as who runs the tests.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rockroll
from rockroll.sandbox.config import DEFAULT_IMAGE

USER = "rockroll-test"
SCENARIO = Path(__file__).with_name("rootless_scenario.py")
UNUSED = re.compile(r"usr/share/|var/lib/|etc/ssl/|usr/lib/git-core/|usr/lib/[^/]+/(perl|gconv)|.*/__pycache__/")
CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    """What rootless_scenario.py reported, run as an ordinary user in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="rockroll-user-") as folder:
        image = Path(folder, "image.tar")
        export_image(image)
        name = user() if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        home = Path(folder, "home")
        home.mkdir()
        if os.getuid() == 0:
            shutil.chown(folder, name)
            shutil.chown(home, name)
        prefix = ["runuser", "-u", name, "--"] if os.getuid() == 0 else []
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(home),
            "PYTHONPATH": os.pathsep.join(packages()),
            "ROCKROLL_HOME": str(home / "rockroll"),
        }
        argv = [*prefix, "env", "-i", *(f"{k}={v}" for k, v in env.items()), interpreter(prefix), "-"]
        try:
            done = subprocess.run(
                [*argv, str(image)], input=SCENARIO.read_bytes(), capture_output=True, timeout=110, cwd=home
            )
            assert done.returncode == 0, done.stderr.decode()
            yield json.loads(done.stdout)
        finally:
            # files in the store belong to subordinate ids; rm takes half the time of shutil.rmtree
            within = [] if os.getuid() == 0 else ["podman", "unshare"]
            subprocess.run([*within, "rm", "-rf", str(home)], check=False)


def export_image(path: Path) -> None:
    """The default image's files as a tar, without what this test does not use: a third of them."""
    made = subprocess.run(["podman", "create", DEFAULT_IMAGE, "true"], capture_output=True, text=True, check=True)
    container = made.stdout.strip()
    try:
        with (
            subprocess.Popen(["podman", "export", container], stdout=subprocess.PIPE) as export,
            tarfile.open(fileobj=export.stdout, mode="r|") as source,
            tarfile.open(path, "w") as target,
        ):
            for member in source:
                if not UNUSED.match(member.name):
                    target.addfile(member, source.extractfile(member) if member.isreg() else None)
        assert export.returncode == 0
    finally:
        subprocess.run(["podman", "rm", container], stdout=subprocess.DEVNULL, check=True)


def user() -> str:
    """The name of an ordinary user with subordinate ids, made if it is missing."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", USER], check=True)
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = path.read_text() if path.exists() else ""
        if f"{USER}:" not in lines:
            path.write_text(f"{lines}{USER}:231072:65536\n")
    return USER


def packages() -> list[str]:
    """Where rockroll and its dependencies are."""
    return [str(Path(rockroll.__file__).parent.parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]


def interpreter(prefix: list[str]) -> str:
    """A Python of this version that the user may run: this one may lie in root's home folder."""
    version = "import sys; print(sys.version_info[:2])"
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        probe = [
            *prefix,
            "env",
            f"PYTHONPATH={os.pathsep.join(packages())}",
            python,
            "-c",
            f"import rockroll; {version}",
        ]
        done = subprocess.run(probe, capture_output=True, text=True, check=False, cwd="/")
        if done.stdout.strip() == str(sys.version_info[:2]):
            return python
    pytest.skip("no Python of this version with rockroll in it that another user may run: put the clone outside /root")


def test_the_node_runs_as_the_user(seen: dict[str, Any]) -> None:
    assert seen["rootless"] is True


def test_limits_that_this_host_cannot_enforce_are_an_error_that_says_how_to_go_on(seen: dict[str, Any]) -> None:
    if seen["unenforced"]:
        assert "allow_unenforced" in seen["refusal"]
    else:
        assert seen["refusal"] == ""


def test_limits_that_this_host_cannot_enforce_are_listed(seen: dict[str, Any]) -> None:
    limits = " ".join(seen["unenforced"])
    if CGROUP_V2:
        assert limits == "", "with cgroup v2 and delegation every limit holds"
    else:
        # cgroup v1 lets no ordinary user make a group
        assert all(limit in limits for limit in ("memory", "cpus", "pids"))


def test_a_fork_bomb_leaves_most_of_the_host_s_processes_to_others(seen: dict[str, Any]) -> None:
    processes, signals, queues = map(int, seen["at_most"].split())
    assert processes <= int(Path("/proc/sys/kernel/pid_max").read_text()) // 4
    assert (signals, queues) == (4096, 204_800)


def test_doctor_tells_the_same_truth_with_its_cure(seen: dict[str, Any]) -> None:
    ok, detail, cure = seen["doctor"]["limits"]
    assert (ok, seen["doctor_ok"]) == (seen["refusal"] == "",) * 2
    if not ok:
        assert "sandboxes are refused here" in detail
        assert "cgroup v2" in cure and "--allow-unenforced" in cure


def test_a_box_is_told_what_it_really_has(seen: dict[str, Any]) -> None:
    told = int(seen["memory"].split()[1]) << 10
    if seen["unenforced"]:
        assert told == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "without a limit it has the host's"
    else:
        assert told == 128 << 20


def test_a_debug_shell_has_a_terminal_of_the_boxs_own(seen: dict[str, Any]) -> None:
    assert "/dev/pts/" in seen["debug"] and "\n42" in seen["debug"], seen["debug"]
    assert seen["debug"].endswith("ended with 9")


def test_processes_are_listed(seen: dict[str, Any]) -> None:
    assert seen["processes"][0].startswith("/dev/rockroll-init")
    assert any(command.startswith("bash") for command in seen["processes"])


def test_sessions_programs_and_files_work(seen: dict[str, Any]) -> None:
    assert seen["state_kept"] == "7 /srv\n"
    assert seen["exit_code"] == 5
    assert seen["who"] == "root\n"
    assert seen["file"] == "written outside, read inside\n"
    assert seen["tee"] == "both\nboth\n"


def test_trees_are_copied_and_watched(seen: dict[str, Any]) -> None:
    assert (seen["owners"], seen["tree"], seen["mine"]) == ("root\n", ["empty", "f", "l"], True)
    assert seen["deleted"].startswith("/srv/up")


def test_a_timeout_kills_everything_that_the_command_started(seen: dict[str, Any]) -> None:
    assert seen["timeout"] == "timeout"
    assert seen["survivors"] == "0\n"
    assert seen["after_timeout"] == "kept\n"


def test_the_model_endpoint_is_bound_and_bound_again(seen: dict[str, Any]) -> None:
    assert seen["endpoint"] == "503\n"
    assert seen["endpoint_after_restart"] == "503\n"
    assert "unreachable" in seen["network"]


def test_a_host_is_reached_by_the_proxy_and_a_port_is_forwarded_also_after_a_restart(seen: dict[str, Any]) -> None:
    found = seen["over_the_network"]
    assert (found["allowed"], found["forwarded"]) == (["hello", "hello"], ["from inside", "from inside"])
    assert "127.0.0.3 is not among the hosts that this sandbox may reach" in found["refused"]


def test_a_box_can_be_recycled(seen: dict[str, Any]) -> None:
    assert seen["recycled"] == [True, ""]
    assert seen["left_behind"] == ""


def test_a_disk_limit_is_refused_or_named(seen: dict[str, Any]) -> None:
    assert "disk: an ordinary user cannot mount" in seen["disk_refusal"] and "allow_unenforced" in seen["disk_refusal"]
    assert seen["disk_unenforced"] is True


def test_a_snapshot_of_a_stopped_box_keeps_its_files(seen: dict[str, Any]) -> None:
    assert seen["snapshot"].startswith("kept\n33 2\n") and "No such file" in seen["snapshot"]


def test_nothing_is_left(seen: dict[str, Any]) -> None:
    assert seen["containers_left"] == ""
    assert seen["node_left"] is False
