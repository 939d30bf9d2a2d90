"""What the HTTP API promises to callers without rockroll, on a real server with real sandboxes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from rockroll import Sandbox, SandboxConfig, home, sync
from rockroll.cli.main import run
from rockroll.errors import HostError, SandboxLost, SandboxNotFound, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.http import token
from rockroll.sandbox.http.codec import CODECS
from rockroll.sandbox.http.routes import LOCAL_ONLY
from rockroll.sandbox.node_client import close_node, connect_node
from rockroll.sandbox.warm_pools import delete_warm_pool, set_warm_pool, warm_pools
from tests.conftest import needs_freezer

SERVE = [sys.executable, "-m", "rockroll", "serve", "--port", "0"]
SMALL = {"memory": "128m", "pids": 64}
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")


class Api:
    """A caller with the token."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = (home.home() / "token").read_text().strip()
        self.session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.token}"})

    def ask(self, verb: str, path: str, **more: Any) -> Any:
        return self.session.request(verb, URL(f"{self.url}{path}", encoded=True), **more)

    async def json(self, verb: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.ask(verb, path, **more) as answer:
            said = await answer.read()
            return answer.status, json.loads(said) if said else None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(server: str) -> AsyncIterator[Api]:
    api = Api(server)
    yield api
    await api.session.close()
    await close_node()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(api: Api) -> AsyncIterator[str]:
    """The path of a box for the tests that leave it usable."""
    status, made = await api.json("POST", "/v1/sandboxes", json={"config": {**SMALL, "name": "http"}})
    assert status == 201
    yield f"/v1/sandboxes/{made['id']}"
    assert (await api.json("DELETE", f"/v1/sandboxes/{made['id']}"))[0] == 200


# ---- who may come in -----------------------------------------------------------------------------------------------


@on_the_modules_loop
async def test_without_the_token_nobody_comes_in(api: Api, box: str) -> None:
    async with aiohttp.ClientSession() as stranger:
        for said in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": api.token}, {"Authorization": "Bearer "}):
            for path in ("/v1/sandboxes", box, "/v1/no-such-thing", "/v1/leases"):
                async with stranger.get(f"{api.url}{path}", headers=said) as answer:
                    assert answer.status == 401, (said, path)
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                    assert "token" in (await answer.json())["error"]["message"]


@on_the_modules_loop
async def test_the_token_is_its_owners_alone_and_made_once(api: Api, tmp_path: Path) -> None:
    assert stat.S_IMODE((home.home() / "token").stat().st_mode) == 0o600
    made = token.ensure(tmp_path / "token")
    assert len(made) >= 40
    assert token.ensure(tmp_path / "token") == made
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        token.ensure(tmp_path / "token")
    (tmp_path / "short").write_text("secret\n")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(UsageError, match="no token"):
        token.ensure(tmp_path / "short")


@on_the_modules_loop
async def test_another_name_of_this_host_and_a_strangers_page_are_refused(api: Api) -> None:
    for headers, status in [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8700"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost:1"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": api.url}, 200),
    ]:
        async with api.ask("GET", "/v1/sandboxes", headers=headers) as answer:
            assert answer.status == status, headers
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_an_address_that_others_reach_needs_a_token(node_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--no-token", "--host", "0.0.0.0"]) == 2
    assert "without a token" in capfd.readouterr().err
    assert run(["serve", "--host", "no.such.name.invalid"]) == 2
    assert run(["serve", "--no-token", "--token-file", "x"]) == 2


@on_the_modules_loop
async def test_a_taken_port_is_named(api: Api) -> None:
    argv = [*SERVE[:-1], str(URL(api.url).port)]
    second = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, said = await second.communicate()
    assert second.returncode == 1
    assert b"another --port" in said


# ---- the page ------------------------------------------------------------------------------------------------------


@on_the_modules_loop
async def test_the_page_needs_nothing_from_elsewhere_and_shows_every_method(api: Api) -> None:
    async with aiohttp.ClientSession() as anybody:
        async with anybody.get(f"{api.url}/docs") as answer:
            page = await answer.text()
        for place in re.findall(r'(?:src|href)="([^"]+)"', page):
            async with anybody.get(f"{api.url}{place}") as answer:
                assert answer.status == 200
        async with anybody.get(f"{api.url}/openapi.json") as answer:
            schema = await answer.json()
    text = json.dumps(schema)
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in schema["components"]["schemas"]
    shown = {(verb.upper(), path) for path, verbs in schema["paths"].items() for verb in verbs}
    for codec in (codec for codecs in CODECS.values() for codec in codecs):
        assert (codec.route.verb, f"/v1{codec.route.path}") in shown
    assert "memory" in schema["components"]["schemas"]["SandboxConfig"]["properties"]
    stdout = schema["components"]["schemas"]["Observation"]["properties"]["stdout"]
    assert stdout["contentEncoding"] == "base64"


def test_every_method_of_the_node_has_a_route_or_says_why_not() -> None:
    assert set(wire.BODIES) - set(CODECS) - set(LOCAL_ONLY) == set()


# ---- errors --------------------------------------------------------------------------------------------------------


@on_the_modules_loop
async def test_errors_have_a_status_a_class_and_a_sentence(api: Api, box: str) -> None:
    for verb, path, body, status, name in [
        ("GET", "/v1/sandboxes/nobody", None, 404, "SandboxNotFound"),
        ("GET", "/v1/nothing", None, 404, "UsageError"),
        ("PUT", "/v1/sandboxes", None, 405, "UsageError"),
        ("POST", "/v1/sandboxes", {"config": {"memory": "1k"}}, 400, "UsageError"),
        ("POST", "/v1/sandboxes", {"config": {"colour": "red"}}, 400, "UsageError"),
        ("POST", "/v1/sandboxes", {"memory": "1g"}, 400, "UsageError"),
        ("POST", "/v1/sandboxes", {"config": {"image": "localhost/nothing:1"}}, 422, "ImageMissing"),
        ("POST", "/v1/sandboxes", {"lease": "none such"}, 400, "UsageError"),
        ("POST", f"{box}/exec", {"argv": "ls"}, 400, "UsageError"),
        ("POST", f"{box}/exec", {}, 400, "UsageError"),
        ("POST", f"{box}/sessions/s/run", {}, 400, "UsageError"),
        ("POST", f"{box}/sessions/s/run", {"command": "a", "command_base64": "YQ=="}, 400, "UsageError"),
        ("GET", f"{box}/commands/none/result", None, 409, "SessionError"),
        ("GET", f"{box}/files", None, 400, "UsageError"),
        ("GET", f"{box}/files?path=/none", None, 422, "FileError"),
        ("GET", f"{box}/files?path=/etc/hosts&offset=x", None, 400, "UsageError"),
        ("GET", f"{box}/files?path=/etc/hosts&colour=red", None, 400, "UsageError"),
        ("GET", f"{box}/files/stat?path=/none", None, 404, "FileError"),
        ("DELETE", "/v1/snapshots/none", None, 404, "SnapshotNotFound"),
    ]:
        got, said = await api.json(verb, path, json=body)
        assert (got, said["error"]["type"]) == (status, name), (path, said)
        assert len(said["error"]["message"]) > 20
    async with api.ask("POST", f"{box}/exec", data=b"{") as answer:
        assert answer.status == 400


@on_the_modules_loop
async def test_the_sdk_names_a_server_that_is_not_there_and_one_that_is_none(api: Api) -> None:
    with pytest.raises(HostError, match="nothing answers at http"):
        await Sandbox(base_url="http://127.0.0.1:9").start()
    with pytest.raises(UsageError, match="base_url"):
        await Sandbox(base_url="127.0.0.1:8700").start()
    with pytest.raises(UsageError, match="token is missing or wrong"):
        await Sandbox(base_url=api.url, token="wrong").start()


# ---- commands ------------------------------------------------------------------------------------------------------


def text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


@on_the_modules_loop
async def test_a_command_answers_with_its_bytes_in_base64(api: Api, box: str) -> None:
    status, seen = await api.json("POST", f"{box}/exec", json={"argv": ["printf", "a\\0\\377"]})
    assert (status, base64.b64decode(seen["stdout"]), seen["exit_code"]) == (200, b"a\0\xff", 0)
    line = base64.b64encode(b"x=5; printf '\xff'; exit 3").decode()
    _, seen = await api.json("POST", f"{box}/sessions/s/run", json={"command_base64": line})
    assert (base64.b64decode(seen["stdout"]), seen["outcome"], seen["exit_code"]) == (b"\xff", "closed", 3)


@on_the_modules_loop
async def test_output_streams_as_lines_and_as_events_with_offsets(api: Api, box: str) -> None:
    command = {"command": "echo one; sleep 0.2; echo two >&2; (exit 4)"}
    async with api.ask(
        "POST", f"{box}/sessions/s/run", json=command, headers={"Accept": "application/x-ndjson"}
    ) as answer:
        first = json.loads(await answer.content.readline())
        assert (first["offset"], first["stream"], text(first["data"])) == (0, "stdout", "one\n")
        rest = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert (rest[0]["offset"], rest[0]["stream"], text(rest[0]["data"])) == (4, "stderr", "two\n")
    assert rest[-1]["result"]["exit_code"] == 4
    async with api.ask(
        "POST", f"{box}/exec", json={"argv": ["echo", "x"]}, headers={"Accept": "text/event-stream"}
    ) as answer:
        assert answer.content_type == "text/event-stream"
        events = (await answer.text()).split("\n\n")
    assert events[0].startswith("event: output\nid: 0\ndata: {")
    assert events[1].startswith('event: result\ndata: {"result":{')


async def sleeping(api: Api, box: str, word: str) -> bool:
    _, found = await api.json("GET", f"{box}/processes")
    return any(word in process["command"] for process in found)


async def until(what: Any) -> None:
    async with asyncio.timeout(10):
        while not await what():
            await asyncio.sleep(0.02)


@on_the_modules_loop
@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
async def test_hanging_up_kills_a_command_unless_it_has_an_id(api: Api, box: str, accept: str) -> None:
    async def hang_up(line: str, **more: str) -> None:
        body = {"argv": ["sh", "-c", line], **more}
        call = asyncio.ensure_future(api.json("POST", f"{box}/exec", json=body, headers={"Accept": accept}))
        await until(lambda: sleeping(api, box, line))
        call.cancel()
        await asyncio.wait((call,))

    await hang_up("sleep 7701; true")
    await until(lambda: _not(sleeping(api, box, "7701")))
    id = f"kept-{len(accept)}"
    line = f"until [ -e /srv/{id} ]; do sleep 0.01; done; echo waited"
    await hang_up(line, command_id=id)
    await api.json("PUT", f"{box}/files?path=/srv/{id}", data=b"")
    again = {"argv": ["sh", "-c", line], "command_id": id}
    _, seen = await api.json("POST", f"{box}/exec", json=again)
    assert text(seen["stdout"]) == "waited\n"
    _, commands = await api.json("GET", f"{box}/commands")
    assert [command["command_id"] for command in commands].count(id) == 1


async def _not(what: Any) -> bool:
    return not await what


@on_the_modules_loop
async def test_a_command_is_fed_and_read_as_it_is(api: Api, box: str) -> None:
    start = {"command_id": "fed", "argv": ["cat"], "stdin": True}
    assert (await api.json("POST", f"{box}/commands", json=start))[0] == 201
    assert (await api.json("POST", f"{box}/commands/fed/input", json={"data": "héllo\n", "end": True}))[0] == 204
    async with api.ask("GET", f"{box}/commands/fed/output", headers={"Accept": "application/octet-stream"}) as answer:
        assert await answer.read() == "héllo\n".encode()
    assert (await api.json("GET", f"{box}/commands/fed/result?output=false"))[1]["stdout"] == ""


# ---- files ---------------------------------------------------------------------------------------------------------


@on_the_modules_loop
async def test_files_are_raw_bytes(api: Api, box: str) -> None:
    data = os.urandom(5 << 20)
    assert (await api.json("PUT", f"{box}/files?path=/srv/a&mode=600", data=data))[0] == 204
    assert (await api.json("POST", f"{box}/files?path=/srv/a", data=b"more"))[0] == 204
    async with api.ask("GET", f"{box}/files?path=/srv/a") as answer:
        assert await answer.read() == data + b"more"
        assert (answer.headers["Rockroll-File-Size"], answer.headers["Rockroll-File-Mode"]) == (
            str((5 << 20) + 4),
            "600",
        )
    async with api.ask("GET", f"{box}/files?path=/srv/a&offset=2&limit=3") as answer:
        assert await answer.read() == data[2:5]


@on_the_modules_loop
async def test_a_reader_that_stalls_holds_the_file_and_not_the_servers_memory(api: Api, box: str) -> None:
    await api.json("POST", f"{box}/exec", json={"argv": ["truncate", "-s", "2G", "/srv/large"]})
    listening = re.search(r":(\d+)$", api.url)
    assert listening
    pid = _pid_of_listener(int(listening[1]))
    before = _resident(pid)
    answers = [await api.ask("GET", f"{box}/files?path=/srv/large") for _ in range(4)]
    await asyncio.sleep(0.5)
    assert _resident(pid) - before < 100 << 20
    for answer in answers:
        answer.close()


def _pid_of_listener(port: int) -> int:
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    inode = next(row[9] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == f"socket:[{inode}]":
                return int(link.parts[2])
        except OSError:
            continue
    raise AssertionError("nobody listens there")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@on_the_modules_loop
async def test_trees_are_tar_archives_both_ways(api: Api, box: str) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode, data, target in [
            ("./", tarfile.DIRTYPE, 0o755, b"", ""),
            ("bin", tarfile.DIRTYPE, 0o750, b"", ""),
            ("bin/run ü", tarfile.REGTYPE, 0o755, os.urandom(3 << 20), ""),
            ("bin/small", tarfile.REGTYPE, 0o600, b"", ""),
            ("implied/deep/f", tarfile.REGTYPE, 0o644, b"f", ""),
            ("link", tarfile.SYMTYPE, 0o777, b"", "bin/small"),
            ("same", tarfile.LNKTYPE, 0o644, b"", "bin/run ü"),
            ("pipe", tarfile.FIFOTYPE, 0o644, b"", ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, len(data), target, 1_600_000_000
            tar.addfile(info, io.BytesIO(data))
    status, copied = await api.json("PUT", f"{box}/tree?path=/srv/tree", data=made.getvalue())
    assert status == 200, copied
    assert (copied["files"], copied["links"], copied["left_out_count"]) == (4, 1, 1)
    await api.json("POST", f"{box}/exec", json={"argv": ["truncate", "-s", "1000001", "/srv/tree/hole"]})
    async with api.ask("GET", f"{box}/tree?path=/srv/tree") as answer:
        assert answer.content_type == "application/x-tar"
        back = io.BytesIO(await answer.read())
    with tarfile.open(fileobj=back) as tar, tarfile.open(fileobj=io.BytesIO(made.getvalue())) as sent:
        for name in ("bin/run ü", "implied/deep/f"):
            file, as_sent = tar.extractfile(name), sent.extractfile(name)
            assert file and as_sent and file.read() == as_sent.read()
        member = tar.getmember("bin")
        assert (member.mode, member.mtime, member.isdir()) == (0o750, 1_600_000_000, True)
        assert (tar.getmember("link").linkname, tar.getmember("hole").size) == ("bin/small", 1_000_001)
        assert {tar.getmember("same").islnk(), tar.getmember("bin/run ü").islnk()} == {True, False}
    async with (
        api.ask("GET", f"{box}/tree?path=/etc/hostname") as answer,
        api.ask("GET", f"{box}/files?path=/etc/hostname") as plain,
    ):
        with tarfile.open(fileobj=io.BytesIO(await answer.read())) as tar:
            file = tar.extractfile("hostname")
            assert file and file.read() == await plain.read()


@on_the_modules_loop
async def test_an_archive_that_leads_out_or_is_none_is_refused(api: Api, box: str) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a/../../../etc/out"))
    for data in (made.getvalue(), b"no archive", b""):
        status, said = await api.json("PUT", f"{box}/tree?path=/srv/evil", data=data)
        assert (status, said["error"]["type"]) == (400, "UsageError"), data[:20]


@on_the_modules_loop
async def test_changes_of_a_folder_stream(api: Api, box: str) -> None:
    await api.json("POST", f"{box}/files/mkdir", json={"path": "/srv/watched", "mode": "750"})
    async with api.ask("GET", f"{box}/files/watch?path=/srv/watched") as answer:
        await api.json("PUT", f"{box}/files?path=/srv/watched/new", data=b"x")
        event = json.loads(await answer.content.readline())
    assert (event["kind"], event["path"]) == ("created", "/srv/watched/new")


# ---- owners --------------------------------------------------------------------------------------------------------


async def cause_of(api: Api, id: str) -> str:
    async def gone() -> bool:
        return (await api.json("GET", f"/v1/sandboxes/{id}"))[0] == 404

    await until(gone)
    return (await api.json("GET", f"/v1/sandboxes/{id}"))[1]["error"]["fields"]["cause"]


@on_the_modules_loop
@needs_freezer
async def test_the_end_of_a_lease_deletes_what_it_owns(api: Api) -> None:
    lease = await api.ask("POST", "/v1/leases")
    id = json.loads(await lease.content.readline())["lease"]
    _, made = await api.json("POST", "/v1/sandboxes", json={"config": SMALL, "lease": id})
    _, copy = await api.json("POST", f"/v1/sandboxes/{made['id']}/fork", json={"lease": id})
    assert (await api.json("POST", f"/v1/sandboxes/{made['id']}/fork", json={"name": "kept"}))[0] == 201
    lease.close()
    assert {await cause_of(api, made["id"]), await cause_of(api, copy["id"])} == {"owner_gone"}
    assert (await api.json("GET", "/v1/sandboxes/kept"))[1]["owner"] == "detached"
    assert (await api.json("DELETE", "/v1/sandboxes/kept"))[0] == 200
    assert (await api.json("POST", "/v1/sandboxes", json={"lease": id}))[0] == 400


@on_the_modules_loop
async def test_a_lease_outlives_the_node(api: Api, end_process: Any) -> None:
    async with Sandbox(SandboxConfig(memory="128m", pids=64), base_url=api.url) as sandbox:
        await sandbox.arun("x=1")
        running = asyncio.ensure_future(sandbox.arun("sleep 1000", session="other"))
        await until(lambda: sleeping(api, f"/v1/sandboxes/{sandbox.id}", "sleep 1000"))
        pid = (await (await connect_node()).call("node.info", {}, type=wire.NodeInfo)).pid
        end_process(pid, 9)
        with pytest.raises(SandboxLost) as lost:
            await running
        assert lost.value.fields["cause"] == "node_lost"
        assert (await sandbox.arun("echo $x")).stdout == b"1\n"
        await close_node()  # the SDK's lease of this event loop with it
        assert await cause_of(api, sandbox.id) == "owner_gone"
    with pytest.raises(SandboxNotFound):
        await sandbox.refresh()


def test_a_server_that_is_killed_takes_its_leases_along(node_home: Path) -> None:
    with subprocess.Popen(SERVE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout
        said = server.stdout.readline()
        url = said.split()[1]
        sandbox = sync.Sandbox(SandboxConfig(memory="128m", pids=64), base_url=url).start()
        with pytest.raises(UsageError):
            sync.Sandbox(base_url=url, token="wrong").start()
        server.kill()
        said += server.stdout.read()
    assert (home.home() / "token").read_text().strip() not in said
    with pytest.raises(HostError, match="nothing answers"):
        sandbox.arun("true")
    with pytest.raises(SandboxNotFound):
        list(sync.Sandbox.attach(sandbox.id).logs(follow=True))  # its removal may still be under way
        sync.Sandbox.attach(sandbox.id)


# ---- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_works_on_a_server(
    api: Api, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def rockroll(*words: str) -> bytes:
        assert run(["sandbox", "--base-url", api.url, *words]) == 0
        return capfdbinary.readouterr().out

    (tmp_path / "file").write_bytes(b"\0content")
    rockroll("up", "--name", "remote", "--memory", "128m", "--label", "a=b")
    assert [info["name"] for info in json.loads(rockroll("ls", "--label", "a=b", "--json"))] == ["remote"]
    assert rockroll("exec", "remote", "--", "echo", "hi") == b"hi\n"
    rockroll("cp", str(tmp_path / "file"), "remote:/srv/file")
    assert rockroll("exec", "remote", "--session", "s", "--", "cat /srv/file") == b"\0content"
    assert b"hi\n" in rockroll("logs", "remote")
    assert run(["sandbox", "--base-url", api.url, "exec", "remote", "--", "false"]) == 1
    rockroll("down", "remote")
    assert "ROCKROLL_BASE_URL" not in os.environ


# ---- docs/http-api.md ----------------------------------------------------------------------------------------------


def test_the_pages_examples_run_as_they_are_printed(api: Api, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script = tmp_path / "examples.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(blocks))
    done = subprocess.run(
        ["bash", script],
        cwd=tmp_path,
        env={**os.environ, "ROCKROLL_BASE_URL": api.url, "ROCKROLL_TOKEN": api.token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("/srv\n42\n", '"exit_code": 0', "hello\n", "hostname", "note.txt", "got this\n"):
        assert said in done.stdout, done.stdout


async def test_warm_pools_are_set_and_deleted_from_python_over_http(api: Api) -> None:
    url = api.url
    made = await set_warm_pool("over-http", 1, SandboxConfig(memory="64m"), wait=True, base_url=url)
    assert (made.ready, made.owner) == (1, "detached")
    assert [pool.name for pool in await warm_pools(base_url=url)] == ["over-http"]
    await delete_warm_pool("over-http", base_url=url)
    assert await warm_pools(base_url=url) == []
    with pytest.raises(UsageError, match="over HTTP a pool goes with"):
        await set_warm_pool("over-http", 1, owner="connection", base_url=url)
