"""What `rockroll doctor` promises: it tries everything, names each defect with its cure, and leaves nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rockroll import home
from rockroll.errors import HostError
from rockroll.sandbox.container import runtime
from tests.conftest import IS_ROOT, needs_limits


def doctor(*options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "rockroll.cli.main", "doctor", *options]
    env = {**os.environ, "PATH": os.environ["PATH"] if path is None else path, "COLUMNS": "200"}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=60, check=False)


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in report["checks"]}


@needs_limits
def test_it_tries_a_sandbox_and_reads_the_limits_back(node_home: Path) -> None:
    done = doctor("--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True)
    checks = by_name(report)
    names = {"podman", "podman service", "oci runtime", "rlimits", "limits", "user namespaces", "image", "disk"}
    assert names | {"memory", "cores", "gpus", "packages", "sandbox", "model endpoint"} <= set(checks)
    assert all(set(check) == {"name", "ok", "detail", "cure"} for check in report["checks"])
    assert all(check["ok"] == (check["cure"] == "") for check in report["checks"])
    if IS_ROOT:
        assert "enforced: memory, swap, pids, cpus" in checks["limits"]["detail"]
        assert "mounted and removed" in checks["disk limits"]["detail"]
    label = f"label=rockroll.home={home.home_id()}"
    left = subprocess.run(["podman", "ps", "--all", "--quiet", "--filter", label], capture_output=True, check=True)
    assert left.stdout == b""


def test_without_podman_it_says_what_to_install(node_home: Path, tmp_path: Path) -> None:
    done = doctor("--json", path=str(tmp_path))
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (1, False)
    assert "apt-get install podman" in by_name(report)["podman"]["cure"]
    assert done.stderr == ""


def test_podman_that_cannot_run_containers_is_quoted(node_home: Path, tmp_path: Path) -> None:
    broken = tmp_path / "podman"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec /usr/bin/podman --version\necho "no soup" >&2; exit 125\n'
    )
    broken.chmod(0o755)
    done = doctor(path=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "no soup" in done.stdout and "Sandboxes cannot run here" in done.stdout


def test_a_runtime_that_hangs_is_named_and_leaves_no_container(
    node_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in runtime.RUNTIMES:
        (folder / name).write_text('#!/bin/sh\ncase "$*" in *create*) exec sleep 20;; esac\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(runtime, "PROBE_TIMEOUT_S", 5)
    monkeypatch.setattr(runtime, "RUNTIMES", ("crun",))
    with pytest.raises(HostError, match=r"crun: no answer within 5 s, at a load of \d+ on \d+ CPUs"):
        runtime.detect(refresh=True)
    listed = subprocess.run(
        [runtime.podman_binary(), "ps", "--all", "--format", "{{.Names}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"rockroll-probe-{os.getpid()}-" not in listed.stdout


def test_the_verdict_on_the_runtime_is_remembered_and_follows_the_host(
    node_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = runtime.detect()
    assert found.runtime in runtime.RUNTIMES and Path(found.binary).exists()
    monkeypatch.setattr(runtime, "_detected", {})
    monkeypatch.setattr(runtime, "_run_once", lambda *_: pytest.fail("probed again"))
    assert runtime.detect() == found
    monkeypatch.setattr(runtime.platform, "release", lambda: "another kernel")
    monkeypatch.setattr(runtime, "_detected", {})
    monkeypatch.setattr(runtime, "_run_once", lambda *_: None)
    assert runtime.detect().runtime == runtime.RUNTIMES[0]
    monkeypatch.undo()
    runtime.detect(refresh=True)


def test_low_hard_limits_of_the_host_stop_no_container(node_home: Path) -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (900, 900))\n"
        "from rockroll.sandbox.container import runtime; print(runtime.detect(refresh=True).runtime)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == runtime.detect().runtime, done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 900
    runtime.detect(refresh=True)
