"""What `rockroll.sync` promises: the same names, from code without an event loop."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rockroll.errors import FileError, SandboxNotFound
from rockroll.sandbox.client import Sandbox as AsyncSandbox
from rockroll.sync import Pool, Sandbox, SandboxConfig, delete_snapshot, snapshots
from tests.conftest import needs_freezer

SMALL = SandboxConfig(memory="128m", pids=64)


def test_every_public_name_of_the_async_class_is_there() -> None:
    wanted = {name for name in dir(AsyncSandbox) if not name.startswith("_")}
    assert wanted - set(dir(Sandbox)) == set()
    assert inspect.signature(Sandbox.arun) == inspect.signature(AsyncSandbox.arun)
    assert Sandbox.arun.__doc__ == AsyncSandbox.arun.__doc__


def test_commands_files_logs_and_errors(node_home: Path) -> None:
    with Sandbox(SMALL) as sandbox:
        sandbox.arun("x=5")
        assert sandbox.arun("echo $x").stdout == b"5\n"
        assert sandbox.execute(["false"]).exit_code == 1
        sandbox.write_file("/srv/a", b"bytes")
        assert sandbox.read_file("/srv/a") == b"bytes"
        assert Sandbox.attach(sandbox.id).name == sandbox.name
        assert b"5\n" in b"".join(sandbox.logs())
        with pytest.raises(FileError):
            sandbox.read_file("/nothing")


def test_files_and_changes(node_home: Path, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up/f").write_text("x")
    with Sandbox(SMALL) as sandbox:
        assert sandbox.upload(tmp_path / "up", "/srv/up").files == 1
        assert sandbox.download("/srv/up", tmp_path / "down").files == 1
        sandbox.move("/srv/up/f", "/srv/g")
        assert (sandbox.exists("/srv/g"), sandbox.stat("/srv/g").size) == (True, 1)
        threading.Timer(1, lambda: sandbox.remove("/srv/g")).start()
        for event in sandbox.watch("/srv"):
            assert (event.kind, event.path) == ("deleted", "/srv/g")
            break


@needs_freezer
def test_snapshots_and_forks(node_home: Path) -> None:
    with Sandbox(SMALL) as sandbox:
        sandbox.write_file("/srv/a", b"first")
        sandbox.snapshot("sync")
        with sandbox.fork(name="apart") as other:
            assert (other.name, other.owner) == ("apart", "connection")
            other.write_file("/srv/a", b"second")
        assert sandbox.read_file("/srv/a") == b"first"
    with Sandbox(SandboxConfig(memory="128m", snapshot="sync")) as sandbox:
        assert sandbox.read_file("/srv/a") == b"first"
    assert [info.name for info in snapshots()] == ["sync"]
    delete_snapshot("sync")
    assert snapshots() == []


def test_a_pool_serves_threads(node_home: Path) -> None:
    seen = []

    def work(pool: Pool) -> None:
        with pool.lease() as sandbox:
            seen.append(sandbox.arun("echo hi").stdout)

    with Pool(SMALL, 1) as pool:
        threads = [threading.Thread(target=work, args=(pool,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [b"hi\n"] * 3


def test_a_script_that_forgets_to_delete_leaves_no_box_and_ends(node_home: Path) -> None:
    script = "from rockroll.sync import Sandbox; s = Sandbox().start(); print(s.id)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    with pytest.raises(SandboxNotFound):  # its removal may still be under way: then the log ends with it
        list(Sandbox.attach(done.stdout.strip()).logs(follow=True))
        Sandbox.attach(done.stdout.strip())
