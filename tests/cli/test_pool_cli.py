"""What `rockroll sandbox pool` and `rockroll bench sandbox` promise, each call a process of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from rockroll import home
from tests.cli.test_sandbox_cli import rockroll, sandbox

pytestmark = pytest.mark.usefixtures("node_home")


def pools() -> dict[str, dict]:
    return {each["name"]: each for each in json.loads(sandbox("pool", "ls", "--json").stdout)}


def test_a_pool_is_set_listed_used_and_removed() -> None:
    (made,) = json.loads(
        sandbox(
            "pool", "set", "small", "--size", "1", "--memory", "64m", "--env", "KEY=secret", "--wait", "--json"
        ).stdout
    )
    assert (made["ready"], made["size"], made["fault"]) == (1, 1, None)
    assert "secret" not in json.dumps(made)
    assert json.loads(sandbox("ls", "--json").stdout) == []
    sandbox("up", "--memory", "64m", "--env", "KEY=secret", "--name", "mine")
    assert sandbox("exec", "mine", "--", "sh", "-c", "echo $KEY").stdout == b"secret\n"
    assert pools()["small"]["taken"] == 1
    assert b"small" in sandbox("pool", "ls").stdout
    sandbox("pool", "rm", "small")
    assert pools() == {}
    assert sandbox("exec", "mine", "--", "true").returncode == 0, "what was taken stays"
    sandbox("down", "mine")


def test_a_killed_node_leaves_no_warm_box_and_the_next_one_fills_the_pool_again() -> None:
    sandbox("pool", "set", "again", "--size", "1", "--memory", "64m", "--wait")
    (folder,) = (home.runtime_dir() / "b").iterdir()
    os.kill(int(rockroll_node_pid()), signal.SIGKILL)
    sandbox("pool", "set", "again", "--size", "1", "--memory", "64m", "--wait")
    (after,) = (home.runtime_dir() / "b").iterdir()
    assert after.name != folder.name
    sandbox("pool", "rm", "again")


def rockroll_node_pid() -> int:
    import asyncio

    from rockroll.sandbox import wire
    from rockroll.sandbox.node_client import close_node, connect_node

    async def ask() -> int:
        try:
            return (await (await connect_node()).call("node.info", wire.Empty(), type=wire.NodeInfo)).pid
        finally:
            await close_node()

    return asyncio.run(ask())


def test_wrong_uses_say_what_to_do() -> None:
    assert b"no pool 'none'; there are: none" in sandbox("pool", "rm", "none", code=2).stderr
    assert b"memory: 1k is under" in sandbox("pool", "set", "a", "--size", "1", "--memory", "1k", code=2).stderr
    assert b"a pool's name is" in sandbox("pool", "set", "a/b", "--size", "1", code=2).stderr
    refused = sandbox("pool", "set", "a", "--size", "1", "--image", "localhost/none:1", "--wait", code=1)
    assert b"could not be filled" in refused.stderr
    sandbox("pool", "rm", "a")
    assert b"--count: at least one sandbox; got 0" in rockroll("bench", "sandbox", "--count", "0", code=2).stderr


def test_a_wrong_node_yaml_is_told_by_whoever_starts_the_node(node_home: Path) -> None:
    (node_home / "node.yaml").write_text("quotas: {owner: {boxs: 1}}\n")
    try:
        assert b"did you mean boxes?" in sandbox("up", code=None).stderr
        checks = {each["name"]: each for each in json.loads(rockroll("doctor", "--json", code=1).stdout)["checks"]}
        assert "did you mean boxes?" in checks["capacity"]["detail"]
    finally:
        (node_home / "node.yaml").unlink()


@pytest.mark.slow
def test_the_benchmark_prints_every_figure_beside_its_baseline_and_leaves_nothing() -> None:
    done = json.loads(rockroll("bench", "sandbox", "--count", "4", "--json").stdout)
    assert {"pool_first_command_p50_ms", "cold_first_command_p50_ms", "storm_per_s", "idle_box_mib"} <= done[
        "figures"
    ].keys()
    assert {"podman_create_start_p50_ms", "podman_storm_per_s"} <= done["baselines"].keys()
    assert done["figures"]["alive_answering"] == 4
    assert json.loads(sandbox("ls", "--json").stdout) == [] and pools() == {}
