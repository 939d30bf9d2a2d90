"""One walk through a sandbox, run by test_rootless.py as an ordinary user; prints what it saw as JSON.

Argument: a tar of the default image's files.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from rockroll import Sandbox, SandboxConfig
from rockroll.errors import LimitNotEnforced
from rockroll.sandbox.client import delete_snapshot
from rockroll.sandbox.config import DEFAULT_IMAGE
from rockroll.sandbox.container import runtime
from rockroll.sandbox.doctor import examine
from rockroll.sandbox.node_client import close_node, connect_node
from rockroll.sandbox.wire import Empty, NodeInfo

CONFIG = SandboxConfig(memory="128m", pids=64)
MODELS = """
import os, urllib.request, urllib.error
try:
    urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + "/models", timeout=5)
except urllib.error.HTTPError as error:
    print(error.code)
"""
SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 8080))
print("ready")
server.accept()[0].sendall(b"from inside")
"""
CONNECT = "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)"


def debug(sandbox_id: str) -> str:
    """What a debug shell shows on a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "rockroll", "debug", sandbox_id])
    os.write(terminal, b"tty; echo $((6*7)); nproc; exit 9\n")
    shown = b""
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 20)[0] and (data := os.read(terminal, 4096)):
            shown += data
    return f"{shown.decode(errors='replace')}\nended with {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"


async def over_the_network(config: SandboxConfig) -> dict:
    """A box that may reach one host, and whose port is forwarded; before and after a restart."""

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.2", 0)
    port = server.sockets[0].getsockname()[1]
    seen: dict = {"allowed": [], "refused": "", "forwarded": []}
    async with Sandbox(dataclasses.replace(config, network=[f"127.0.0.2:{port}"])) as sandbox:
        for _ in range(2):
            seen["allowed"].append((await sandbox.arun(f"curl -s http://127.0.0.2:{port}/")).output)
            inside = await sandbox.start_command(["python3", "-u", "-c", SERVER])
            async for _ in inside.output():
                break
            async with sandbox.forward(8080) as place:
                reader, writer = await asyncio.open_connection(*place)
                seen["forwarded"].append((await reader.read()).decode())
                writer.close()
            await sandbox.restart()
        seen["refused"] = (await sandbox.arun("curl -s http://127.0.0.3/")).output
    server.close()
    return seen


async def walk() -> dict:
    seen: dict = {"refusal": ""}
    report = await examine()
    seen["doctor"] = {check.name: [check.ok, check.detail, check.cure] for check in report.checks}
    seen["doctor_ok"] = report.ok
    try:
        async with Sandbox(CONFIG):
            pass
    except LimitNotEnforced as error:
        seen["refusal"] = str(error)
    async with Sandbox(dataclasses.replace(CONFIG, allow_unenforced=True)) as sandbox:
        seen["unenforced"] = sandbox.info.unenforced
        await sandbox.arun("cd /srv; x=7")
        seen["state_kept"] = (await sandbox.arun("echo $x $PWD")).output
        seen["exit_code"] = (await sandbox.execute(["sh", "-c", "exit 5"])).exit_code
        seen["who"] = (await sandbox.execute(["whoami"])).output
        await sandbox.write_file("/srv/deep/file", "written outside, read inside\n")
        seen["file"] = (await sandbox.arun("cat /srv/deep/file; rm /srv/deep/file")).output
        with tempfile.TemporaryDirectory() as here:
            Path(here, "up/empty").mkdir(parents=True)
            Path(here, "up/f").write_text("tree")
            Path(here, "up/l").symlink_to("f")
            await sandbox.upload(Path(here, "up"), "/srv/up")
            seen["owners"] = (await sandbox.arun("stat -c %U /srv/up /srv/up/* | sort -u")).output
            await sandbox.download("/srv/up", Path(here, "down"))
            seen["tree"] = sorted(path.name for path in Path(here, "down").iterdir())
            seen["mine"] = Path(here, "down/f").stat().st_uid == os.getuid()
        async with sandbox.watch("/srv") as changes:
            await sandbox.arun("rm -r /srv/up")
            async for event in changes:
                seen["deleted"] = event.path
                if event.kind == "deleted":
                    break
        seen["tee"] = (await sandbox.arun("echo both | tee /dev/stderr")).output
        await sandbox.arun("y=kept")
        seen["timeout"] = (await sandbox.arun("(setsid sleep 1000 &); sleep 1000", timeout=0.5)).outcome
        seen["survivors"] = (await sandbox.arun("pgrep -r D,R,S,T -c sleep")).output
        seen["after_timeout"] = (await sandbox.arun("echo $y")).output
        seen["endpoint"] = (await sandbox.execute(["python3", "-c", MODELS])).output
        seen["network"] = (await sandbox.execute(["python3", "-c", CONNECT])).output
        seen["debug"] = await asyncio.to_thread(debug, sandbox.id)
        seen["at_most"] = (await sandbox.arun("ulimit -Hu; ulimit -Hi; ulimit -Hq")).output
        seen["memory"] = (await sandbox.arun("grep MemTotal /proc/meminfo")).output
        seen["processes"] = [process.command for process in await sandbox.processes()]
        await sandbox.stop()
        await sandbox.start()
        seen["endpoint_after_restart"] = (await sandbox.execute(["python3", "-c", MODELS])).output
    seen["over_the_network"] = await over_the_network(dataclasses.replace(CONFIG, allow_unenforced=True))
    async with Sandbox(dataclasses.replace(CONFIG, allow_unenforced=True)) as sandbox:
        await sandbox.arun("touch /srv/mine")
        recycled = await sandbox.recycle()
        seen["recycled"] = [recycled.ok, recycled.reason]
        seen["left_behind"] = (await sandbox.arun("ls -A /srv")).output if recycled.ok else ""
    try:
        async with Sandbox(SandboxConfig(memory="128m", disk="32m")):
            seen["disk_refusal"] = ""
    except LimitNotEnforced as error:
        seen["disk_refusal"] = str(error)
    config = SandboxConfig(memory="128m", disk="32m", allow_unenforced=True)
    async with Sandbox(config) as sandbox:
        seen["disk_unenforced"] = "disk" in sandbox.info.unenforced
        await sandbox.arun("echo kept >/srv/file; rm /etc/issue; chown 33:33 /srv/file; ln /srv/file /srv/link")
        await sandbox.stop()
        await sandbox.snapshot("user")
        async with Sandbox(dataclasses.replace(CONFIG, snapshot="user", allow_unenforced=True)) as other:
            seen["snapshot"] = (await other.arun("cat /srv/link; stat -c '%u %h' /srv/file; ls /etc/issue")).output
        await delete_snapshot("user")
    info = await (await connect_node()).call("node.info", Empty(), type=NodeInfo)
    seen["rootless"] = info.rootless
    await close_node()
    node = os.pidfd_open(info.pid)
    signal.pidfd_send_signal(node, signal.SIGTERM)
    seen["node_left"] = not select.select([node], [], [], 20)[0]
    return seen


runtime.detect()
podman = [runtime.podman_binary()]
importing = [
    *podman,
    "import",
    "--quiet",
    "--change",
    "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    sys.argv[1],
    DEFAULT_IMAGE,
]
subprocess.run(importing, env=runtime.environment(), check=True, stdout=sys.stderr)
report = asyncio.run(walk())
listed = subprocess.run([*podman, "ps", "--all", "--quiet"], env=runtime.environment(), capture_output=True, text=True)
report["containers_left"] = listed.stdout
# Podman keeps one process for the user's namespace; this ends it, as nothing else of this user runs here.
subprocess.run([*podman, "system", "migrate"], env=runtime.environment(), check=True)
print(json.dumps(report))
