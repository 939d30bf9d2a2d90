"""placement.ray: the processes of a run on the nodes of a real cluster: placed, watched, told of, gone at the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rockroll import rpc
from rockroll.errors import HostError, ProcessDied, UsageError
from rockroll.placement.needs import Needs
from tests.placement.conftest import Nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """The configuration of the child below."""

    say: str = "line one"
    address: str = ""
    key: str = ""
    code: int = -1


CHILD = """
import argparse, asyncio, json, os, signal, sys
from pathlib import Path
from rockroll import child, rpc

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
config = json.loads(parser.parse_args().config.read_text())
print(config["say"], flush=True)
if config["code"] >= 0:
    sys.exit(config["code"])

async def main():
    stop = child.end_asked()
    async def look(path, peer):
        return sorted(f.name for f in Path(path).iterdir())
    async def write(path, peer):
        Path(path).mkdir(parents=True)
        (Path(path) / "weights").write_bytes(b"w" * 3_000_000)
    async def home(body, peer):
        return os.environ.get("ROCKROLL_HOME")
    handlers = {"look": look, "write": write, "home": home}
    server = rpc.Server(config["address"], handlers, key=rpc.key_of(config["address"], config["key"]))
    await server.start()
    await stop.wait()
    await server.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def nodes(make_nodes: Callable[[], Nodes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head with one CPU, where this process is, and another node with two."""
    code = tmp_path_factory.mktemp("code")
    (code / "farchild.py").write_text(CHILD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{code}:{os.environ.get('PYTHONPATH', Path.cwd())}")
        made = make_nodes()
        made.add(1)
        made.add(2)
        yield made


async def test_a_process_runs_on_another_node_and_reads_what_is_here(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "large").write_bytes(os.urandom(3_000_000))
    async with Places(tmp_path / "logs", nodes.address) as places:
        await places.reserve({"far": Needs(cpus=2)})
        place = await places.place("far", Needs(cpus=2))
        assert not place.here and place.address.startswith("tcp://")
        found = Path(await place.reads(str(model), keep=True))
        assert (
            found.is_relative_to(nodes.nodes[1].home)
            and (found / "sub" / "large").read_bytes() == (model / "sub" / "large").read_bytes()
        )
        assert await place.reads(str(model), keep=True) == str(found)
        await place.start("farchild", Said(address=place.address, key=place.their_key))
        client = await rpc.connect(place.address, place.key)
        assert await client.call("home") == str(nodes.nodes[1].home)
        assert await client.call("look", str(found)) == ["config.json", "sub"]
        async with asyncio.timeout(20):
            while not any(each.memory for each in places.usage()):  # it comes with the next sign of life
                await asyncio.sleep(0.05)
        (taken,) = places.usage()
        assert taken.name == "far" and taken.node.endswith(nodes.nodes[1].node_id[:8])
        written = str(tmp_path / "weights")
        await client.call("write", place.writes(written))
        assert not Path(written).exists()
        await place.bring(written, tmp_path / "weights")
        assert (tmp_path / "weights" / "weights").stat().st_size == 3_000_000
        await client.close()
    assert "line one" in (tmp_path / "logs" / "far.log").read_text()


async def test_a_process_of_this_node_is_called_without_a_wire(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    async with Places(tmp_path / "logs", nodes.address) as places:
        await places.reserve({"near": Needs(cpus=1)})
        place = await places.place("near", Needs(cpus=1))
        assert place.here and place.address.startswith("ipc://") and place.key is None
        assert await place.reads("/any/path") == place.writes("/any/path") == "/any/path"
        await place.start("farchild", Said(address=place.address))
        client = await rpc.connect(place.address)
        assert await client.call("home") == os.environ["ROCKROLL_HOME"]
        await client.close()


async def test_what_does_not_fit_is_one_sentence_before_anything_starts(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    async with Places(tmp_path / "logs", nodes.address) as places:
        with pytest.raises(HostError, match=r"trainer-1 .*have no place.*needs 2 CPUs.*add nodes"):
            await places.reserve({"trainer-0": Needs(cpus=2), "trainer-1": Needs(cpus=2)})
        await places.reserve({"trainer-0": Needs(cpus=2)})  # nothing was kept


async def test_room_that_another_run_is_giving_back_is_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.joining import joined
    from rockroll.placement.on_ray.places import Places
    from rockroll.placement.ray import planned

    every = {"far": Needs(cpus=2), "near": Needs(cpus=1)}
    with joined(nodes.address):
        async with Places(tmp_path / "logs", nodes.address) as places:
            await places.reserve(every)
            found = asyncio.ensure_future(asyncio.to_thread(planned, nodes.address, lambda gpus: every))
            assert not (await asyncio.wait([found], timeout=0.5))[0]
        assert not (await found).missing


async def test_a_death_on_another_node_is_told_with_the_end_of_its_log(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    async with Places(tmp_path / "logs", nodes.address) as places:
        await places.reserve({"engine-0": Needs(cpus=2)})
        place = await places.place("engine-0", Needs(cpus=2))
        await place.start("farchild", Said(say="the disk is on fire", code=3))
        sentence = r"the engine-0 process on node [\d.]+ ended with exit code 3(?s:.*)the disk is on fire"
        with pytest.raises(ProcessDied, match=sentence):
            await asyncio.wait_for(places.guard(asyncio.Event().wait()), 10)
        # and its room, all that there is, is for the process that replaces it
        again = await places.place("engine-0", Needs(cpus=2), attempt=1)
        assert again.spot.node == place.spot.node  # type: ignore[attr-defined]
        await again.start("farchild", Said(address=again.address, key=again.their_key))
        client = await rpc.connect(again.address, again.key)
        assert await client.call("home") == str(nodes.nodes[1].home)
        await client.close()


def test_a_plan_says_where_each_would_go_and_starts_nothing(nodes: Nodes) -> None:
    from rockroll.placement.ray import planned

    found = planned(nodes.address, lambda gpus: {"trainer-0": Needs(cpus=2), "engine-0": Needs(cpus=1)})
    assert not found.missing
    assert [room.here for room in found.places.values()] == [False, True]


def test_a_node_with_another_rockroll_python_or_torch_is_refused() -> None:
    from rockroll.placement.on_ray.far import Spot, check_versions
    from rockroll.placement.on_ray.host import Versions

    mine = Versions("0.1.0", "3.11", "2.13.0")
    for theirs, what in (
        (Versions("0.2.0", "3.11", "2.13.0"), "rockroll 0.2.0 and this one 0.1.0"),
        (Versions("0.1.0", "3.12", "2.13.0"), "python 3.12 and this one 3.11"),
        (Versions("0.1.0", "3.11", "none"), "torch none and this one 2.13.0"),
    ):
        spot = Spot("id", 1, "10.0.0.9", "tcp://10.0.0.9:1", (2, 3), "/x", theirs)
        assert f"node 10.0.0.9 has {what}; install the same" in check_versions(spot, mine)
    assert check_versions(Spot("id", 1, "10.0.0.9", "", (2, 3), "/x", mine), mine) == ""


async def test_a_client_port_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    with pytest.raises(UsageError, match=r"ray://h:10001: .*start rockroll on a node of the cluster"):
        Places(tmp_path / "logs", "ray://h:10001")


async def test_an_address_where_no_cluster_is_is_one_sentence_at_once(tmp_path: Path) -> None:
    import ray

    from rockroll.placement.on_ray.places import Places

    ray.shutdown()
    with pytest.raises(HostError, match=r"127.0.0.1:1: no cluster can be joined .*ray start --head"):
        Places(tmp_path / "logs", "127.0.0.1:1")


async def test_a_node_that_is_killed_is_noticed_within_five_seconds(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    victim = nodes.add(3)
    async with Places(tmp_path / "logs", nodes.address) as places:
        await places.reserve({"trainer-0": Needs(cpus=3)})
        place = await places.place("trainer-0", Needs(cpus=3))
        told: asyncio.Future[ProcessDied] = asyncio.get_running_loop().create_future()
        await place.start("farchild", Said(address=place.address, key=place.their_key), on_death=told.set_result)
        client = await rpc.connect(place.address, place.key)
        await client.call("home")
        log = tmp_path / "logs" / "trainer-0.log"
        while not log.exists() or "line one" not in log.read_text():  # it comes with the next sign of life
            await asyncio.sleep(0.05)
        begun = time.monotonic()
        nodes.kill(victim)
        error = await asyncio.wait_for(told, 5)
        assert error.fields["cause"] == "node_lost" and "line one" in error.message
        assert time.monotonic() - begun < 5
        await client.close()
        # what ran there gets another place
        assert (await places.place("trainer-0", Needs(cpus=2), attempt=1)).spot.node != place.spot.node  # type: ignore[attr-defined]


async def test_a_run_whose_node_is_killed_waits_for_nobody_there(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    victim = nodes.add(3)
    names = ("engine-0", "trainer-0")
    places = Places(tmp_path / "logs", nodes.address)
    async with contextlib.AsyncExitStack() as run:
        await run.enter_async_context(places)
        await places.reserve(dict.fromkeys(names, Needs(cpus=1.5)))
        told: list[ProcessDied] = []

        def on_death(error: ProcessDied) -> None:
            told.append(error)
            places.fail(error)

        for name in names:
            place = await places.place(name, Needs(cpus=1.5))
            said = Said(address=place.address, key=place.their_key)
            await place.start("farchild", said, on_death=on_death)
        async with asyncio.timeout(20):
            while not all(each.memory for each in places.usage()) or len(places.usage()) < 2:
                await asyncio.sleep(0.05)  # both are heard of
        begun = time.monotonic()
        nodes.kill(victim)
        with pytest.raises(ProcessDied, match=r"node [\d.]+, where \S+ ran, is lost"):
            await places.guard(asyncio.Event().wait())
        known = time.monotonic()
        await run.aclose()
    assert known - begun < 5
    assert time.monotonic() - known < 3, "it was over, and something waited for a node that is not there"


async def test_a_node_that_goes_silent_is_noticed_within_five_seconds(nodes: Nodes, tmp_path: Path) -> None:
    from rockroll.placement.on_ray.places import Places

    async with Places(tmp_path / "logs", nodes.address) as places:
        await places.reserve({"engine-0": Needs(cpus=2)})
        place = await places.place("engine-0", Needs(cpus=2))
        told: asyncio.Future[ProcessDied] = asyncio.get_running_loop().create_future()
        await place.start("farchild", Said(address=place.address, key=place.their_key), on_death=told.set_result)
        holder = place.spot.pid  # type: ignore[attr-defined]
        os.kill(holder, signal.SIGSTOP)
        try:
            error = await asyncio.wait_for(told, 5.5)
            assert error.fields["cause"] == "node_lost"
        finally:
            os.kill(holder, signal.SIGCONT)
