"""What rockroll's own Podman service and its client promise."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rockroll import home
from rockroll.errors import HostError, ImageMissing, SandboxNotFound
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container.podman import HOME_LABEL, Podman, PodmanService
from tests.sandbox.boxes import start_box

SMALL = SandboxConfig(memory="64m", pids=32)


async def test_a_box_lives_from_create_to_remove(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    mine = {HOME_LABEL: home.home_id()}
    assert [each["Id"] for each in await podman.list(mine)] == [box.id]
    assert await podman.list({HOME_LABEL: "another"}) == []
    await podman.stop(box.id)
    assert (await podman.inspect(box.id))["State"]["Status"] == "exited"
    await podman.start(box.id)
    assert (await podman.inspect(box.id))["State"]["Pid"] != box.pid
    assert await podman.remove(box.id) is True
    assert await podman.remove(box.id) is False
    with pytest.raises(SandboxNotFound):
        await podman.inspect(box.id)


async def test_a_missing_image_says_what_to_type(podman: Podman) -> None:
    with pytest.raises(ImageMissing, match="rockroll image pull localhost/none"):
        await start_box(podman, SandboxConfig(image="localhost/none"))


async def test_a_registry_that_does_not_answer_is_a_missing_image(podman: Podman) -> None:
    with pytest.raises(ImageMissing, match="could not be pulled"):
        await podman.image_pull("registry.invalid/none:1", timeout_s=20)


async def test_a_tar_becomes_an_image(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("there")
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(tmp_path / "hello", "hello")
    name = "localhost/rockroll-test-import:1"
    await podman.image_import(tmp_path / "root.tar", name, ["ENV A=b"])
    try:
        assert (await podman.image_inspect(name))["Config"]["Env"] == ["A=b"]
        assert await podman.image_exists(name)
    finally:
        await podman.image_remove(name)
    assert not await podman.image_exists(name)


async def test_boxes_outlive_their_service(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    async with PodmanService() as second:
        assert [each["Id"] for each in await second.list({HOME_LABEL: home.home_id()})] == [box.id]
    assert Path(f"/proc/{box.pid}").exists()


async def test_the_services_socket_is_not_in_the_box(podman: Podman) -> None:
    box = await start_box(podman, SMALL)
    open_in_box = [str(fd.readlink()) for fd in Path(f"/proc/{box.pid}/fd").iterdir()]
    assert not [target for target in open_in_box if target.startswith("socket:")]
    assert "LISTEN_FDS" not in Path(f"/proc/{box.pid}/environ").read_text()


async def test_a_service_that_died_is_an_error_with_a_cure(podman_service: PodmanService) -> None:
    podman = podman_service.podman
    assert podman_service.pid is not None
    os.kill(podman_service.pid, signal.SIGKILL)
    with pytest.raises(HostError, match="run `rockroll doctor`"):
        while True:  # a request that came before the signal may still be answered
            await podman.version()


async def test_podman_that_cannot_run_is_an_error_with_its_words(
    node_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "podman"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec /usr/bin/podman --version\necho "no soup" >&2; exit 125\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostError, match="no soup"):
        await PodmanService().start()
    assert not list(home.runtime_dir().glob("podman-*"))


def test_the_service_dies_with_its_process_however_that_ends(node_home: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from rockroll.sandbox.container.podman import PodmanService\n"
        "async def main():\n"
        "    service = PodmanService(); await service.start()\n"
        "    print(service.pid, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    parent.stdout.close()
    assert gone


async def test_sockets_of_killed_processes_are_swept(node_home: Path) -> None:
    left = home.runtime_dir() / "podman-4194304-x.sock"  # no process has a number above pid_max
    left.touch()
    async with PodmanService():
        assert not left.exists()
