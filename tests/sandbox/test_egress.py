"""What `network: [host, …]` promises to a real box: those hosts, by the proxy that its variables name, and no other."""

from __future__ import annotations

import asyncio
import io
import shutil
import signal
import zipfile
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pip
import pytest
import pytest_asyncio

from rockroll.sandbox import wire
from rockroll.sandbox.net.resolve import Resolve
from rockroll.sandbox.network import Address
from rockroll.sandbox.node.host import SandboxHost
from tests.conftest import needs_freezer
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = {
    "files.example": "127.0.0.1",
    "other.example": "127.0.0.1",
    "inside.example": "10.0.0.1",
    "metadata.example": "169.254.169.254",
}
CURL = "curl --silent --show-error --max-time 10"
TUNNEL = f"{CURL} --proxytunnel"


@pytest.fixture(scope="module")
def resolve() -> Resolve:
    async def look_up(name: str, port: int) -> list[Address]:
        if name not in NAMES:
            raise OSError("Name or service not known")
        return [ip_address(NAMES[name])]

    return look_up


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port() -> AsyncIterator[int]:
    """A server on this host's loopback that says who was asked for."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            host = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Host: "))
            body = f"{head.split()[1]} of {host.partition(':')[0]}\n".encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(host: SandboxHost, port: int) -> Lab:
    entries = [f"files.example:{port}", "*.inside.example", "inside.example", "metadata.example", f"127.0.0.0/8:{port}"]
    return await Lab(host, network=entries).up()


async def info(lab: Lab) -> wire.NetworkInfo:
    return await lab.call("sandbox.network", wire.Ref(id=lab.id))


async def test_a_host_that_is_named_answers_by_plain_http_and_through_a_tunnel(box: Lab, port: int) -> None:
    for curl in (CURL, TUNNEL):
        assert await box.out(f"{curl} http://files.example:{port}/a/b") == "/a/b of files.example"
    code = f"import urllib.request as u; print(u.urlopen('http://files.example:{port}/p').read().decode())"
    assert (await box.execute("python3", "-c", code)).stdout == b"/p of files.example\n\n"
    shell = (
        "exec 9<>/dev/tcp/127.0.0.1/41415; "
        rf"printf 'GET http://files.example:{port}/sh HTTP/1.0\r\n\r\n' >&9; tail -n 1 <&9; exec 9>&-"
    )
    assert await box.out(shell) == "/sh of files.example"


async def test_what_is_not_named_is_refused_with_a_sentence_that_curl_and_python_show(box: Lab, port: int) -> None:
    said = await box.out(f"{CURL} http://other.example:{port}/ http://pypi.org/")
    assert said.splitlines() == [
        "rockroll: other.example is not among the hosts that this sandbox may reach; whoever starts the sandbox can add"
        f' "other.example:{port}" to its network list',
        "rockroll: pypi.org is not among the hosts that this sandbox may reach; whoever starts the sandbox can add"
        ' "pypi.org" to its network list',
    ]
    code = "import urllib.request as u; u.urlopen('https://pypi.org/')"
    assert b"403 rockroll: pypi.org is not among the hosts" in (await box.execute("python3", "-c", code)).stderr
    before = await info(box)
    assert (await box.run(f"{TUNNEL} https://pypi.org/")).exit_code == 56
    after = await info(box)
    assert (after.refused, after.allowed) == (before.refused + 1, before.allowed)
    event = after.recent[-1]
    assert (event.method, event.host, event.port, event.verdict) == ("CONNECT", "pypi.org", 443, "refused")
    assert "can add" in event.reason


@pytest.mark.parametrize(
    "url",
    [
        "http://inside.example/",
        "http://metadata.example/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://0x7f.1/",
        "http://2852039166/",
        "http://127.0.0.2:1/",
    ],
)
async def test_a_name_or_spelling_that_leads_inside_is_refused(box: Lab, url: str) -> None:
    for curl in (CURL, TUNNEL):
        done = await box.run(f"{curl} --globoff --noproxy '' -x http://127.0.0.1:41415 --output /dev/stderr {url}")
        assert b"403" in done.stderr or b"rockroll: " in done.stderr, done
        assert (await info(box)).recent[-1].verdict == "refused"


async def test_there_is_no_way_but_the_proxy(box: Lab, port: int) -> None:
    assert await box.out("ls /sys/class/net") == "lo"
    for place in (f"127.0.0.1/{port}", "1.1.1.1/443", "169.254.169.254/80"):
        assert (await box.run(f"timeout 5 bash -c '</dev/tcp/{place}'")).exit_code == 1
    code = "import socket; socket.getaddrinfo('files.example', 80)"
    assert (await box.execute("python3", "-c", code)).exit_code == 1


async def test_the_variables_lead_there_and_the_config_has_the_last_word(host: SandboxHost, box: Lab) -> None:
    seen = dict(line.split("=", 1) for line in (await box.out("env")).splitlines())
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        assert seen[name] == "http://127.0.0.1:41415"
    assert seen["NO_PROXY"] == seen["no_proxy"] == "127.0.0.1,localhost,::1"
    other = await Lab(host, network=["files.example"], env={"HTTP_PROXY": "", "NO_PROXY": "x"}).up()
    assert await other.out("echo $HTTP_PROXY-$NO_PROXY-$no_proxy") == "-x-127.0.0.1,localhost,::1"
    none = await Lab(host).up()
    assert await none.out("env | grep -ci proxy || true") == "0"
    assert (await none.run("</dev/tcp/127.0.0.1/41415")).exit_code == 1
    assert await info(none) == wire.NetworkInfo(network="none")
    for lab in (other, none):
        await lab.call("sandbox.delete", wire.Ref(id=lab.id))


async def test_two_boxes_have_each_its_own_rules_and_counts(host: SandboxHost, box: Lab, port: int) -> None:
    other = await Lab(host, network=[f"other.example:{port}", f"127.0.0.1:{port}"]).up()
    assert await other.out(f"{CURL} http://other.example:{port}/") == "/ of other.example"
    assert "not among" in await other.out(f"{CURL} http://files.example:{port}/")
    seen = await info(other)
    assert (seen.allowed, seen.refused, seen.open) == (1, 1, 0)
    assert seen.network == f"allow:other.example:{port},127.0.0.1:{port}"
    assert not any(event.host == "other.example" and event.verdict == "allowed" for event in (await info(box)).recent)
    await other.call("sandbox.delete", wire.Ref(id=other.id))


async def test_after_a_stop_a_death_and_a_recycling_the_first_command_has_it_again(
    host: SandboxHost, port: int
) -> None:
    lab = await Lab(host, network=[f"files.example:{port}", f"127.0.0.1:{port}"]).up()
    fetch = f"{CURL} http://files.example:{port}/"
    for again in ("sandbox.stop", "", "sandbox.recycle"):
        assert await lab.out(fetch) == "/ of files.example"
        if again == "sandbox.stop":
            await lab.call(again, wire.Ref(id=lab.id))
            await lab.call("sandbox.start", wire.Ref(id=lab.id))
        elif not again:
            lab.box.hull.init.process.send(signal.SIGKILL)
            await lab.box.life.death()
            await lab.call("sandbox.restore", wire.Restore(id=lab.id))
            assert (await info(lab)).allowed == 2
    assert not (await lab.recycle()).ok  # it was restarted
    lab = await Lab(host, network=[f"files.example:{port}", f"127.0.0.1:{port}"]).up()
    assert await lab.out(fetch) == "/ of files.example"
    assert (await lab.recycle()).ok
    assert (await info(lab)).recent == [], "its next user sees what the last one did"
    assert await lab.out(fetch) == "/ of files.example"
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))


async def test_connections_end_with_the_box(host: SandboxHost) -> None:
    ended = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    held = server.sockets[0].getsockname()[1]
    lab = await Lab(host, network=[f"127.0.0.1:{held}"]).up()
    code = (
        f"exec 9<>/dev/tcp/127.0.0.1/41415; printf 'CONNECT 127.0.0.1:{held} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&9;"
        " head -n 1 <&9; setsid sleep 100 & disown"
    )
    assert "200 Connection established" in await lab.out(code)
    assert (await info(lab)).open == 1
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))
    async with asyncio.timeout(10):
        await ended.wait()
    server.close()


@needs_freezer
async def test_a_fork_may_reach_whom_its_origin_may(host: SandboxHost, box: Lab, port: int) -> None:
    made = await box.call("sandbox.fork", wire.Fork(id=box.id))
    other = Lab(host)
    other.id = made.id
    assert await other.out(f"{CURL} http://files.example:{port}/") == "/ of files.example"
    await other.call("sandbox.delete", wire.Ref(id=other.id))


async def test_pip_installs_a_package_from_an_index_that_is_allowed(host: SandboxHost, tmp_path: Path) -> None:
    """The example of docs/network.md, with an index on this host instead of pypi.org, and this host's pip."""
    name = "demo-1.0-py3-none-any.whl"
    pages = {"/simple/demo/": f"<a href='/files/{name}'>{name}</a>".encode(), f"/files/{name}": wheel()}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        kind = "text/html" if path.endswith("/") else "application/zip"
        body = pages.get(path, b"")
        head = f"HTTP/1.1 {200 if body else 404} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    at = server.sockets[0].getsockname()[1]
    shutil.copytree(Path(pip.__file__).parent, tmp_path / "pip")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    hosts = [f"files.example:{at}", f"127.0.0.1:{at}"]
    lab = await Lab(host, network=hosts, memory="256m", mounts=[f"{tmp_path}/pip:/opt/lib/pip:ro"]).up()
    options = f"--index-url http://files.example:{at}/simple --trusted-host files.example --target /srv/lib"
    done = await lab.run(f"PYTHONPATH=/opt/lib python3 -m pip install {options} demo", timeout=60)
    assert done.exit_code == 0, done
    assert await lab.out("PYTHONPATH=/srv/lib python3 -c 'import demo; print(demo.word)'") == "installed"
    await lab.call("sandbox.delete", wire.Ref(id=lab.id))
    server.close()


def wheel() -> bytes:
    """The smallest package there is."""
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w") as file:
            file.writestr("demo.py", "word = 'installed'\n")
            file.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
            file.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr("demo-1.0.dist-info/RECORD", "")
        return made.getvalue()
