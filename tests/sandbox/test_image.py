"""What the default image promises, and how it comes to be."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from rockroll.errors import HostError
from rockroll.sandbox.config import DEFAULT_IMAGE, SandboxConfig
from rockroll.sandbox.container import image
from rockroll.sandbox.container.podman import Podman
from tests.sandbox.boxes import start_box


async def test_it_has_what_agents_expect(podman: Podman) -> None:
    box = await start_box(podman, SandboxConfig(memory="128m", pids=64))
    for program in ("bash", "ls", "python3", "git", "curl", "ps"):
        assert box.run(program, "--version").returncode == 0, program
    assert box.run("sh", "-c", "echo $LANG").stdout == "C.UTF-8\n"


async def test_its_python_is_compiled_ahead(podman: Podman) -> None:
    box = await start_box(podman, SandboxConfig(memory="128m", pids=64))
    script = "import json, pathlib; print(pathlib.Path(json.__cached__).exists())"
    assert box.run("python3", "-B", "-c", script).stdout == "True\n"


async def test_what_is_there_is_not_made_again(podman: Podman) -> None:
    started = time.perf_counter()
    found = await image.ensure(podman)
    assert (found.name, found.source, found.default) == (DEFAULT_IMAGE, "present", True)
    assert time.perf_counter() - started < 2


async def test_without_a_registry_or_mmdebstrap_the_cure_is_named(
    node_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"rockroll image build --from ROOTFS\.tar"):
        await image._mmdebstrap(tmp_path / "x.tar", print)


async def test_a_tar_that_is_not_there_is_named(podman: Podman, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is not a file"):
        await image.ensure(podman, tar=tmp_path / "none.tar")


def test_image_ls_prints_json(node_home: Path) -> None:
    argv = [sys.executable, "-m", "rockroll.cli.main", "image", "ls", "--json"]
    listed = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert listed[0]["name"] == DEFAULT_IMAGE and listed[0]["default"] is True


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_it_is_made_without_a_registry(node_home: Path, tmp_path: Path) -> None:
    await image._mmdebstrap(tmp_path / "root.tar", print)
    with tarfile.open(tmp_path / "root.tar") as tar:
        names = {name.removeprefix("./") for name in tar.getnames()}
    assert {"usr/bin/bash", "usr/bin/python3", "usr/bin/git", "usr/bin/curl", "usr/bin/ps"} <= names
