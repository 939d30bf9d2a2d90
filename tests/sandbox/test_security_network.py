"""A box without a network reaches nobody: not the internet, not the host, not its neighbours, by whatever socket."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll.sandbox.node.host import SandboxHost
from tests.sandbox.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")
PORT = 41414


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def neighbour(host: SandboxHost) -> AsyncIterator[Lab]:
    lab = await Lab(host).up()
    yield lab


async def python(lab: Lab, code: str, *arguments: str) -> str:
    done = await lab.execute("python3", "-c", f"import errno, os, socket, struct, sys\n{code}", *arguments)
    return (done.stdout + done.stderr).decode()


async def test_there_is_loopback_and_nothing_else(shared: Lab) -> None:
    assert (await shared.out("ls /sys/class/net")).split() == ["lo"]
    assert await shared.out("tail -n +2 /proc/net/route; cat /proc/net/arp | tail -n +2") == ""


SEND = """
for family, kind, target in (
    (socket.AF_INET, socket.SOCK_STREAM, ("1.1.1.1", 443)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53)),
    (socket.AF_INET, socket.SOCK_STREAM, ("169.254.169.254", 80)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("169.254.169.254", 80)),
    (socket.AF_INET6, socket.SOCK_STREAM, ("fd00:ec2::254", 80)),
    (socket.AF_INET6, socket.SOCK_DGRAM, ("2606:4700:4700::1111", 53)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("224.0.0.251", 5353)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("255.255.255.255", 67)),
):
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            s.connect(target)
            s.send(b"x")
            print("reached", target)
        except OSError as error:
            print(errno.errorcode[error.errno or 0] if error.errno else repr(error), target)
"""


async def test_no_packet_leaves_by_tcp_or_udp_nor_to_a_metadata_address(shared: Lab) -> None:
    told = (await python(shared, SEND)).splitlines()
    assert len(told) == 8 and not [line for line in told if not line.startswith("ENETUNREACH")], told


async def test_no_name_is_resolved(shared: Lab) -> None:
    said = await shared.execute("getent", "ahosts", "example.com")
    assert said.exit_code != 0 and said.stdout == b""
    resolvers = await shared.execute("sh", "-c", "grep -h ^nameserver /etc/resolv.conf")
    reach = "socket.getaddrinfo('example.com', 80)"
    assert "rror" in await python(shared, reach), resolvers
    ours = {line for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver")}
    assert not ours & set(resolvers.stdout.decode().splitlines())


RAW = """
for family in range(64):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind, 1 if (family, kind) == (2, 3) else 0).close()
            print(family, int(kind))
        except OSError:
            pass
"""


async def test_only_sockets_that_its_network_namespace_holds_can_be_made(shared: Lab) -> None:
    made = {tuple(map(int, line.split())) for line in (await python(shared, RAW)).splitlines()}
    families = {family for family, _ in made}
    # vsock (40) would reach the machine's hypervisor; packet (17) and raw sockets need a capability
    assert families == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
    assert (socket.AF_INET, socket.SOCK_RAW) not in made and (socket.AF_INET6, socket.SOCK_RAW) not in made


async def test_icmp_and_netlink_change_nothing(shared: Lab) -> None:
    ping = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).sendto(b'\\x08' * 8, ('1.1.1.1', 0))"
    assert "rror" in await python(shared, ping)
    up = """
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
body = struct.pack("BxHiII", 0, 0, 0, 1, 1) + struct.pack("HH8s", 12, 3, b"dummy9\\0\\0")
s.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
print(errno.errorcode[-struct.unpack("i", s.recv(999)[16:20])[0]])
for protocol in (9,):
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        print("audit")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert (await python(shared, up)).split() == ["EPERM", "EINVAL"]


async def test_the_host_s_ports_and_abstract_sockets_are_out_of_reach(shared: Lab) -> None:
    name = f"\\0rockroll-test-{os.getpid()}"
    with socket.create_server(("0.0.0.0", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name.encode().decode("unicode_escape"))
        abstract.listen()
        code = f"""
for address in ("127.0.0.1", "0.0.0.0", "10.88.0.1", "192.0.2.1", sys.argv[1]):
    try:
        socket.create_connection((address, {tcp.getsockname()[1]}), timeout=2)
        print("reached", address)
    except OSError as error:
        print("refused")
try:
    s = socket.socket(socket.AF_UNIX)
    s.connect("{name}")
    print("reached the abstract socket")
except OSError as error:
    print("refused")
"""
        told = await python(shared, code, _own_address())
    assert told.split() == ["refused"] * 6, told
    listed = await shared.out("cat /proc/net/unix")
    assert "rockroll-test" not in listed


async def test_a_neighbour_s_ports_are_out_of_reach(shared: Lab, neighbour: Lab) -> None:
    serve = (
        "s = socket.create_server(('0.0.0.0', 8123)); u = socket.socket(socket.AF_UNIX); u.bind('\\0box'); u.listen()"
    )
    await neighbour.run(f'python3 -c "import socket, time; {serve}; print(1, flush=True); time.sleep(60)" & sleep 0.5')
    code = """
for family, address in ((socket.AF_INET, ("127.0.0.1", 8123)), (socket.AF_UNIX, "\\0box")):
    try:
        socket.socket(family).connect(address)
        print("reached")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert (await python(shared, code)).split() == ["ECONNREFUSED", "ECONNREFUSED"]
    assert "reached" in await python(neighbour, code), "it does listen, for its own box"


async def test_neighbours_share_no_memory_queues_or_files(shared: Lab, neighbour: Lab) -> None:
    mark = f"secret-{os.getpid()}"
    places = " ".join(f"{folder}/{mark}" for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run"))
    write = f"echo {mark} | tee {places}; touch /dev/mqueue/{mark} 2>/dev/null; ipcmk -M 4096 -Q -S 1"
    await neighbour.run(write)
    found = await shared.execute(
        "sh", "-c", f"find / -xdev -name {mark} 2>/dev/null; ls /dev/shm /dev/mqueue; tail -qn +2 /proc/sysvipc/*"
    )
    assert found.stdout.decode().replace("/dev/shm:", "").replace("/dev/mqueue:", "").split() == [], found


async def test_netlink_does_not_tell_of_the_host_s_network(shared: Lab) -> None:
    tables = "cat /proc/net/tcp /proc/net/udp /proc/net/dev /proc/net/fib_trie 2>/dev/null"
    told = await shared.out(tables)
    assert _own_address() not in told
    assert not [line for line in told.splitlines() if line.strip().startswith(("eth", "podman", "veth", "en"))]
    assert Path("/proc/net/dev").read_text() != await shared.out("cat /proc/net/dev")


def _own_address() -> str:
    """Of this host in its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
            return s.getsockname()[0]
        except OSError:
            return "192.0.2.2"


async def test_boxes_cannot_signal_each_other(shared: Lab, neighbour: Lab) -> None:
    await neighbour.run("sleep 444 & disown; until grep -q 444 /proc/$!/cmdline; do :; done")
    (pid,) = neighbour.named("444")
    done = await shared.execute("sh", "-c", f"kill -9 {pid}; kill -9 -1; true")
    assert done.outcome == "ok" and neighbour.named("444") == [pid]
