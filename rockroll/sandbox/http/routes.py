"""The node's methods as resources: one table, read by the server, by the client and by the OpenAPI page.

In: nothing. Out: ROUTES. Leaves bringing a body onto a request and back to codec.py, and the doing to endpoints.py.

A name in braces, a query name and a name in the JSON body are the fields of the method's Struct in wire.py.
`shape` says how body and reply travel:

    call     JSON in, JSON out                       stream   JSON in, one JSON object a line out (or SSE, or bytes)
    read     the bytes of a file out                 write    the bytes of a file in
    get      a tree of files out                     put      a tree of files in
    duplex   parts in and out at once (frames.py)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from rockroll.errors import (
    FileError,
    ImageMissing,
    LimitNotEnforced,
    SandboxError,
    SessionError,
    SnapshotNotFound,
    UsageError,
)
from rockroll.errors import RockrollError as Error
from rockroll.sandbox import wire
from rockroll.sandbox.fs.tree import Copied

Shape = Literal["call", "stream", "read", "write", "get", "put", "duplex"]
PREFIX = "/v1"


class Held(msgspec.Struct, frozen=True):
    """The first line of a lease."""

    lease: str
    """Its id: who knows it can make sandboxes that end with it."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method under one path."""

    method: str
    """Of wire.py."""
    verb: str
    path: str
    says: str
    """The first sentence is the summary of the page."""
    tag: str
    reply: Any = None
    """The reply's type, or that of one item of a stream. None: nothing, status 204."""
    query: tuple[str, ...] = ()
    fixed: dict[str, Any] = field(default_factory=dict)
    """Fields that this path stands for."""
    unused: tuple[str, ...] = ()
    """Fields that mean nothing to this method."""
    shape: Shape = "call"
    leased: bool = False
    """The body's owner is said as `lease`: the id of a lease, or none for a box that nobody owns."""
    runs: bool = False
    """It runs a command: it may stream, and take a command_id."""
    status: int = 200
    raises: tuple[type[Error], ...] = ()
    example: dict[str, Any] | None = None


BOX = "/sandboxes/{id}"
ROUTES = [
    # -- sandboxes
    Route(
        method="sandbox.create", verb="POST", path="/sandboxes", tag="sandboxes", leased=True, status=201,
        reply=wire.SandboxInfo, raises=(UsageError, ImageMissing, LimitNotEnforced),
        says="Makes a sandbox. With a `lease` it is deleted when that lease ends; without one it lives until it is"
        " deleted or its `ttl` is over. A `name` makes the call safe to send again: the second one is refused.",
        example={"config": {"memory": "256m", "ttl": "1h", "labels": {"job": "demo"}}},
    ),
    Route(
        method="sandbox.list", verb="GET", path="/sandboxes", tag="sandboxes", reply=list[wire.SandboxInfo],
        query=("all", "labels", "state"), says="Lists the sandboxes that carry every label and are in the state given.",
    ),
    Route(
        method="sandbox.get", verb="GET", path=BOX, tag="sandboxes", reply=wire.SandboxInfo,
        says="What the node knows of a sandbox.",
    ),
    Route(
        method="sandbox.delete", verb="DELETE", path=BOX, tag="sandboxes", reply=wire.SandboxInfo,
        says="Removes a sandbox and all that is in it.",
    ),
    Route(
        method="sandbox.stop", verb="POST", path=f"{BOX}/stop", tag="sandboxes", reply=wire.SandboxInfo,
        says="Ends every process in it; its files stay.",
    ),
    Route(
        method="sandbox.start", verb="POST", path=f"{BOX}/start", tag="sandboxes", reply=wire.SandboxInfo,
        says="Starts it again after `stop`.",
    ),
    Route(
        method="sandbox.restore", verb="POST", path=f"{BOX}/restore", tag="sandboxes", reply=wire.Restored,
        fixed={"restart": False},
        says="Brings a sandbox that died or was stopped back, with its files; its sessions return at their next"
        " command. One that runs is left as it is.",
    ),
    Route(
        method="sandbox.restore", verb="POST", path=f"{BOX}/restart", tag="sandboxes", reply=wire.Restored,
        fixed={"restart": True}, says="Stops it if it runs, then as `restore`.",
    ),
    Route(
        method="sandbox.recycle", verb="POST", path=f"{BOX}/recycle", tag="sandboxes", reply=wire.Recycled,
        says="Makes it as good as new: every process but init killed, every written file removed, both verified."
        " Where that fails it is deleted, and the reply says why.",
    ),
    Route(
        method="sandbox.fork", verb="POST", path=f"{BOX}/fork", tag="sandboxes", leased=True, status=201,
        reply=wire.SandboxInfo, says="Makes another sandbox that begins with a copy of this one's files.",
        example={"name": "second-try"},
    ),
    Route(
        method="sandbox.stats", verb="GET", path=f"{BOX}/stats", tag="sandboxes", reply=wire.Stats,
        says="What it has used, and its limits.",
    ),
    Route(
        method="sandbox.env", verb="GET", path=f"{BOX}/env", tag="sandboxes", reply=dict[str, str],
        says="The environment of a program that would start in it now.",
    ),
    Route(
        method="sandbox.set_env", verb="PATCH", path=f"{BOX}/env", tag="sandboxes", reply=dict[str, str],
        says="Sets variables, or removes those whose value is null; answers with the environment after that.",
        example={"changes": {"STAGE": "two", "OLD": None}},
    ),
    Route(
        method="sandbox.processes", verb="GET", path=f"{BOX}/processes", tag="sandboxes", reply=list[wire.ProcessInfo],
        says="Every process in it, init first.",
    ),
    Route(
        method="sandbox.signal", verb="POST", path=f"{BOX}/processes/{{pid}}/signal", tag="sandboxes",
        raises=(UsageError,),
        says="Sends a signal to one process. With the `birth` of the list it reaches that process or none.",
        example={"signal": "TERM"},
    ),
    Route(
        method="logs", verb="GET", path=f"{BOX}/logs", tag="sandboxes", shape="stream", reply=wire.LogChunk,
        query=("offset", "follow"), says="What its commands printed, from a byte offset on; with `follow`, to its end.",
    ),
    # -- snapshots
    Route(
        method="sandbox.snapshot", verb="POST", path=f"{BOX}/snapshots", tag="snapshots", reply=wire.SnapshotInfo,
        status=201, raises=(UsageError,), says="Keeps what it has written so far under a name.",
        example={"name": "ready"},
    ),
    Route(
        method="snapshot.list", verb="GET", path="/snapshots", tag="snapshots", reply=list[wire.SnapshotInfo],
        says="Every snapshot, the oldest first.",
    ),
    Route(
        method="snapshot.delete", verb="DELETE", path="/snapshots/{name}", tag="snapshots", reply=wire.SnapshotInfo,
        raises=(SnapshotNotFound,), says="Removes a snapshot; sandboxes made from it keep their files.",
    ),
    # -- sessions and commands
    Route(
        method="session.create", verb="POST", path=f"{BOX}/sessions", tag="sessions", reply=wire.SessionInfo,
        status=201, raises=(SessionError,), says="Opens a Bash session with these variables in this folder.",
        example={"session": "build", "env": {"CC": "gcc"}, "cwd": "/srv"},
    ),
    Route(
        method="session.list", verb="GET", path=f"{BOX}/sessions", tag="sessions", reply=list[wire.SessionInfo],
        says="Its sessions.",
    ),
    Route(
        method="session.close", verb="DELETE", path=f"{BOX}/sessions/{{session}}", tag="sessions",
        unused=("env", "cwd"), raises=(SessionError,), says="Ends a session and every process in it.",
    ),
    Route(
        method="session.run", verb="POST", path=f"{BOX}/sessions/{{session}}/run", tag="sessions",
        reply=wire.Observation, runs=True, raises=(UsageError, SessionError),
        says="Runs a line of shell in a session, which is opened on first use, and answers at its end. When the caller"
        " hangs up the command is killed, unless it has a `command_id`: then it goes on, and the same request sent"
        " again finds it. `Accept: application/x-ndjson` or `text/event-stream`: the output as it comes.",
        example={"command": "cd /srv && ls", "timeout": 60},
    ),
    Route(
        method="execute", verb="POST", path=f"{BOX}/exec", tag="commands", reply=wire.Observation, runs=True,
        raises=(UsageError,),
        says="Runs one program without a shell. Hanging up, `command_id` and `Accept` are as in `run`.",
        example={"argv": ["python3", "-c", "print(6 * 7)"], "timeout": 5},
    ),
    Route(
        method="command.start", verb="POST", path=f"{BOX}/commands", tag="commands", reply=wire.CommandInfo, status=201,
        raises=(UsageError,),
        says="Begins a command that goes on without its caller: `command`, a line for the `session`, or `argv`, a"
        " program. Its id is run once: the same request sent again finds it.",
        example={"command_id": "build-1", "command": "make", "session": "build"},
    ),
    Route(
        method="command.list", verb="GET", path=f"{BOX}/commands", tag="commands", reply=list[wire.CommandInfo],
        says="Those under way, and the last 256 that ended.",
    ),
    Route(
        method="command.wait", verb="GET", path=f"{BOX}/commands/{{command_id}}/result", tag="commands",
        reply=wire.Observation, query=("output",), raises=(SessionError,),
        says="Waits for its end. Hanging up leaves it running.",
    ),
    Route(
        method="command.output", verb="GET", path=f"{BOX}/commands/{{command_id}}/output", tag="commands",
        shape="stream", reply=wire.OutputChunk, query=("offset", "follow"), raises=(SessionError,),
        says="What it prints, from a byte offset of both streams on, to its end. The next offset is that of the chunk"
        " and its length: a reader that was cut off goes on there.",
    ),
    Route(
        method="command.cancel", verb="POST", path=f"{BOX}/commands/{{command_id}}/cancel", tag="commands",
        reply=wire.Observation, unused=("output",), raises=(SessionError,),
        says="Kills it and all it has started.",
    ),
    Route(
        method="command.input", verb="POST", path=f"{BOX}/commands/{{command_id}}/input", tag="commands",
        raises=(SessionError,), says="Sends it input; `end` closes the input after that.",
        example={"data": "yes\n", "end": True},
    ),
    Route(
        method="command.signal", verb="POST", path=f"{BOX}/commands/{{command_id}}/signal", tag="commands",
        raises=(SessionError, UsageError), says="Sends a signal, by name or number, to every process it has started.",
        example={"signal": "INT"},
    ),
    # -- files
    Route(
        method="file.read", verb="GET", path=f"{BOX}/files", tag="files", shape="read",
        query=("path", "offset", "limit"), raises=(FileError,),
        says="The bytes of a file, as they are. Without `limit`: to its end.",
    ),
    Route(
        method="file.write", verb="PUT", path=f"{BOX}/files", tag="files", shape="write", query=("path", "mode"),
        fixed={"append": False}, raises=(FileError,),
        says="Writes the request's body to a file; missing parent folders are made. A request that is cut off leaves"
        " what had arrived.",
    ),
    Route(
        method="file.write", verb="POST", path=f"{BOX}/files", tag="files", shape="write", query=("path", "mode"),
        fixed={"append": True}, raises=(FileError,), says="Adds the request's body to the end of a file.",
    ),
    Route(
        method="file.remove", verb="DELETE", path=f"{BOX}/files", tag="files", query=("path", "recursive"),
        raises=(FileError,), says="Removes a file, a link or an empty folder; `recursive`: a folder and all in it.",
    ),
    Route(
        method="file.stat", verb="GET", path=f"{BOX}/files/stat", tag="files", reply=wire.FileStat,
        query=("path", "follow"), raises=(FileError,),
        says="Kind, size, mode and time of what is at a path; 404 where nothing is.",
    ),
    Route(
        method="file.list", verb="GET", path=f"{BOX}/files/list", tag="files", reply=list[wire.FileStat],
        query=("path",), raises=(FileError,), says="What is in a folder.",
    ),
    Route(
        method="file.walk", verb="GET", path=f"{BOX}/files/walk", tag="files", shape="stream",
        reply=list[wire.FileStat], query=("path",), raises=(FileError,), says="What is in a folder and all below it.",
    ),
    Route(
        method="file.watch", verb="GET", path=f"{BOX}/files/watch", tag="files", shape="stream",
        reply=list[wire.FileEvent], query=("path", "recursive"), raises=(FileError,),
        says="Changes in a folder, as they happen. Nothing that happens after the answer's headers is missed.",
    ),
    Route(
        method="file.mkdir", verb="POST", path=f"{BOX}/files/mkdir", tag="files", raises=(FileError,),
        says="Makes a folder and those missing above it.", example={"path": "/srv/data"},
    ),
    Route(
        method="file.move", verb="POST", path=f"{BOX}/files/move", tag="files", raises=(FileError,),
        says="Renames. A file at the target is replaced, folders above it are made.",
        example={"source": "/srv/a", "target": "/srv/b"},
    ),
    Route(
        method="file.get", verb="GET", path=f"{BOX}/tree", tag="files", shape="get", query=("path",),
        raises=(FileError,),
        says="A file or folder with all below it, as a tar archive. What is no file, folder or link is left out. Links"
        " are told, never followed.",
    ),
    Route(
        method="file.put", verb="PUT", path=f"{BOX}/tree", tag="files", shape="put", query=("path",), reply=Copied,
        raises=(FileError,),
        says="Unpacks a tar archive into a folder, which is made. Everything belongs to the sandbox's user.",
    ),
    # -- the network
    Route(
        method="sandbox.network", verb="GET", path=f"{BOX}/network", tag="network", reply=wire.NetworkInfo,
        says="Whom it may reach, and what it has asked its proxy for.",
    ),
    Route(
        method="port.connect", verb="POST", path=f"{BOX}/ports/{{port}}/connect", tag="network", shape="duplex",
        reply=bytes, raises=(SandboxError, UsageError),
        says="A connection to a port of its loopback, for the SDK's `forward`. Each body is a row of msgpack binaries,"
        " each after its length in four bytes; an empty one in the answer ends that half.",
    ),
    # -- warm pools
    Route(
        method="pool.set", verb="PUT", path="/pools/{name}", tag="pools", reply=wire.PoolInfo,
        fixed={"owner": "detached"}, raises=(UsageError,),
        says="Keeps so many sandboxes of a kind ready: `POST /sandboxes` with the same configuration gets one at once.",
        example={"size": 4, "config": {"memory": "256m"}},
    ),
    Route(
        method="pool.list", verb="GET", path="/pools", tag="pools", reply=list[wire.PoolInfo], says="Every warm pool.",
    ),
    Route(
        method="pool.filled", verb="GET", path="/pools/{name}/filled", tag="pools", reply=wire.PoolInfo,
        raises=(UsageError,), says="Answers when the pool has as many sandboxes as it should.",
    ),
    Route(
        method="pool.delete", verb="DELETE", path="/pools/{name}", tag="pools", reply=wire.PoolInfo,
        raises=(UsageError,), says="Ends a pool and the sandboxes that wait in it.",
    ),
    # -- the node
    Route(
        method="node.info", verb="GET", path="/node", tag="node", reply=wire.NodeInfo,
        says="The node behind this API.",
    ),
    Route(
        method="node.metrics", verb="GET", path="/node/metrics", tag="node", reply=wire.NodeMetrics,
        says="Sandboxes by state, and how fast Podman answers. `/metrics` has the same, and the pools, for Prometheus.",
    ),
]  # fmt: skip
LOCAL_ONLY = {
    "sandbox.claim": "the server claims what its leases own",
    "sandbox.abandon": "the server tells the end of its leases",
    "sandbox.terminal": "a terminal is handed over on the sandbox's own host: run `rockroll debug` there",
    "terminal.open": "a terminal goes to another host through a cluster's hub: run `rockroll debug --cluster FILE`",
    "snapshot.read": "files go from node to node through a cluster's hub",
    "snapshot.bring": "files go from node to node through a cluster's hub",
    "image.write": "images go from node to node through a cluster's hub",
    "image.read": "images go from node to node through a cluster's hub",
    "model.route": "models are routed on the sandbox's own host",
    "model.seat": "models are routed on the sandbox's own host",
}
"""Methods that no route carries, and what to say of them."""
