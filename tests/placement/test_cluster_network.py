"""A cluster over a network of its own: CURVE, packets that are dropped and come again, connections that are reset.

hub 10.77.0.1 ──bridge── node 10.77.0.2 ──┐
                    └─── client 10.77.0.3 ┴─ each a network namespace; none but the hub listens
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.placement.cluster import Host, Hub

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "iptables", "nsenter")),
        reason="network namespaces are made by root, with ip, nsenter and iptables",
    ),
]
HUB = "10.77.0.1"
SUBNETS = {"node": "10.77.1", "client": "10.77.2"}


def sh(*argv: str, check: bool = True) -> str:
    return subprocess.run(argv, check=check, capture_output=True, text=True).stdout


class Net:
    """Two subnets that meet at the hub alone. Nothing of it is in the host's own namespace."""

    def __init__(self) -> None:
        self.tag = f"rr{os.getpid() % 100_000}"

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def make(self) -> None:
        hub = self.space("hub")
        sh("ip", "netns", "add", hub)
        sh("ip", "-n", hub, "link", "set", "lo", "up")
        sh("ip", "-n", hub, "addr", "add", f"{HUB}/32", "dev", "lo")
        for name, subnet in SUBNETS.items():
            space = self.space(name)
            sh("ip", "netns", "add", space)
            sh("ip", "-n", hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
            sh("ip", "-n", hub, "addr", "add", f"{subnet}.1/24", "dev", name)
            sh("ip", "-n", hub, "link", "set", name, "up")
            sh("ip", "-n", space, "link", "set", "lo", "up")
            sh("ip", "-n", space, "addr", "add", f"{subnet}.2/24", "dev", "eth0")
            sh("ip", "-n", space, "link", "set", "eth0", "up")
            sh("ip", "-n", space, "route", "add", HUB, "via", f"{subnet}.1")

    def remove(self) -> None:
        for name in (*SUBNETS, "hub"):
            sh("ip", "netns", "del", self.space(name), check=False)

    def prefix(self, name: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.space(name)}"]  # `ip netns exec` hides the cgroups

    def cut(self, name: str, on: bool) -> None:
        """Every packet of one is dropped, both ways; no connection is told."""
        for chain in ("INPUT", "OUTPUT"):
            sh(*self.prefix(name), "iptables", "-A" if on else "-D", chain, "-i" if chain == "INPUT" else "-o",
               "eth0", "-j", "DROP")  # fmt: skip

    def reset(self, name: str) -> None:
        """Every connection of one is ended by a reset."""
        for action in ("-A", "-D"):
            for chain in ("INPUT", "OUTPUT"):
                sh(*self.prefix(name), "iptables", action, chain, "-p", "tcp", "-j", "REJECT",
                   "--reject-with", "tcp-reset")  # fmt: skip
            time.sleep(0.3)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> Iterator[tuple[Net, Hub, Host, Host]]:
    net = Net()
    folder = tmp_path_factory.mktemp("net")
    hub = Hub(folder / "cluster.json", f"tcp://{HUB}:0", net.prefix("hub"))
    node, client = Host(folder / "node", net.prefix("node")), Host(folder / "client", net.prefix("client"))
    try:
        net.make()
        hub.start()
        node.join(hub.file, "far")
        yield net, hub, node, client
    finally:
        node.end()
        if hub.process is not None:
            hub.stop()
        net.remove()


Made = tuple[Net, Hub, Host, Host]


def start(made: Made, code: str) -> subprocess.Popen[str]:
    """A client's program, whose body is given, with `box` a sandbox of its own."""
    program = f"""
import asyncio, json, sys, time
from rockroll import Sandbox, SandboxConfig
from rockroll.errors import SandboxLost
from rockroll.sandbox.node_client import close_node
def say(*what): print(*what, flush=True)
async def main():
    async with Sandbox(SandboxConfig(memory="64m", pids=64)) as box:
        say("ready")
{textwrap.indent(textwrap.dedent(code), "        ")}
    await close_node()
asyncio.run(main())
"""
    _, hub, _, client = made
    return subprocess.Popen(
        [*client.prefix, sys.executable, "-c", program],
        env={**client.environment, "ROCKROLL_CLUSTER": str(hub.file)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(program: subprocess.Popen[str]) -> str:
    assert program.stdout
    got = program.stdout.readline().strip()
    if not got:
        assert program.stderr
        pytest.fail(program.stderr.read())
    return got


def test_a_connection_that_is_reset_costs_nothing_and_nothing_is_done_twice(net: Made) -> None:
    wire = net[0]
    with start(
        net,
        """
        await box.arun("n=0")
        for number in range(60):
            seen = await box.arun("n=$((n + 1)); sleep 0.05; echo $n")
            assert seen.stdout == f"{number + 1}\\n".encode(), (number, seen)
            if number in (5, 20, 35):
                say("reset")
        say("done")
        """,
    ) as program:
        assert line(program) == "ready"
        for name in ("client", "node", "client"):
            assert line(program) == "reset"
            wire.reset(name)
        assert line(program) == "done"
    assert program.returncode == 0


def test_a_short_silence_costs_nothing(net: Made) -> None:
    with start(
        net,
        """
        say("go")
        seen = await box.arun("sleep 2; echo slept")
        assert seen.stdout == b"slept\\n", seen
        say("done")
        """,
    ) as program:
        assert [line(program), line(program)] == ["ready", "go"]
        net[0].cut("node", True)
        time.sleep(1.5)
        net[0].cut("node", False)
        assert line(program) == "done"


@pytest.mark.parametrize("who", ["node", "client"])
def test_packets_dropped_for_30_s_are_told_of_in_5_and_afterwards_nothing_is_lost_or_done_twice(
    net: Made, who: str
) -> None:
    wire = net[0]
    with start(
        net,
        """
        command = await box.start_command("for i in $(seq 400); do echo $i; sleep 0.1; done", command_id="long")
        once = box.arun("echo run >> /data/once; sleep 1; wc -l < /data/once", session="other")
        got, told = b"", 0.0
        waiting = asyncio.ensure_future(box.arun("sleep 1000", session="third"))
        waiting.add_done_callback(lambda _: say("told", time.monotonic()))
        await box.execute(["mkdir", "-p", "/data"])
        assert (await once).stdout == b"1\\n"
        say("go")
        while True:
            try:
                async for chunk in command.output(len(got)):
                    assert chunk.offset == len(got)
                    got += chunk.data
                break
            except SandboxLost:
                await asyncio.sleep(0.5)
        assert got == b"".join(b"%d\\n" % i for i in range(1, 401)), got[-100:]
        assert isinstance(waiting.exception(), SandboxLost)
        assert (await command.wait()).exit_code == 0
        assert (await box.arun("wc -l < /data/once", session="other")).stdout == b"1\\n"
        say("done")
        """,
    ) as program:
        assert [line(program), line(program)] == ["ready", "go"]
        wire.cut(who, True)
        began = time.monotonic()
        word, when = line(program).split()
        assert word == "told"
        assert float(when) - began < 5.0
        time.sleep(max(0.0, 30 - (time.monotonic() - began)))
        wire.cut(who, False)
        assert line(program) == "done"
    assert program.returncode == 0


def test_the_key_is_needed_and_a_node_listens_nowhere(net: Made, tmp_path: Path) -> None:
    wire, hub, _, client = net
    said = json.loads(hub.file.read_bytes())
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps({**said, "server_key": "0" * 40}))
    forged.chmod(0o600)
    code = f"""
import asyncio
from rockroll.rpc.trunk import Trunk
from rockroll.sandbox import where
async def dial():
    hub = where.hub({str(forged)!r})
    await Trunk(hub.address, hub.server_key).open(within=1)
asyncio.run(dial())
"""
    refused = client.run(sys.executable, "-c", code)
    assert "no hub answers" in refused.stderr
    listening = sh(*wire.prefix("node"), "ss", "-Htln")
    assert listening == "", "a node listens at no port"
