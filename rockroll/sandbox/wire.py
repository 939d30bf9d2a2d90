"""The node's methods as frozen Structs: what crosses between a client (SDK, CLI, pool) and the sandbox host.

In and out: plain values only, so that msgpack carries them. `id` accepts an id, a unique id prefix or a name.
Leaves the carrying to rpc.py, the doing to host.py and the comfortable surface to client.py.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

State = Literal["starting", "running", "paused", "stopped", "exited", "gone"]
"""`stopped`: somebody asked for it. `exited`: init died by itself or was killed. `gone`: removed; only its story is
kept."""

Cause = Literal["oom", "killed", "runtime_crash", "node_lost", "ttl", "owner_gone", "exited", "deleted"]
"""Why a sandbox died or went (lifecycle.py): apart from how a call in it ended."""

Outcome = Literal["ok", "timeout", "closed", "oom", "killed", "lost"]
"""ok: ran to its end, whatever the exit code. timeout: killed at its limit. closed: the shell ended (`exit 3`).
oom: killed for memory. killed: ended by a signal from outside the command (cancelled, session closed, shell killed).
lost: the sandbox itself died."""

Owner = Literal["connection", "detached"]

MAX_OUTPUT = 1 << 20
"""Bytes kept of each stream of one command unless the caller says otherwise."""

DEFAULT_SESSION = "default"


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all: frozen, keyword arguments only."""


class Create(Struct, frozen=True):
    config: dict[str, Any]
    """The fields of SandboxConfig (`dataclasses.asdict`); what is left out takes its default."""
    owner: Owner = "connection"
    """A `connection` sandbox is deleted when the connection that made it ends."""


class Ref(Struct, frozen=True):
    id: str


class PoolSet(Struct, frozen=True):
    """A warm pool to make, or to change."""

    name: str
    size: int
    config: dict[str, Any] = {}
    """Fields of SandboxConfig but name, labels, ttl, idle_ttl and snapshot."""
    idle: str | float | None = "1h"
    """Given up when nobody took a box for this long; None: never."""
    owner: Owner = "detached"
    """A `connection` pool goes when the connection that made it ends."""


class PoolRef(Struct, frozen=True):
    name: str


class PoolInfo(Struct, frozen=True):
    name: str
    size: int
    ready: int
    """Boxes that can be had at once."""
    making: int
    taken: int
    """Boxes that somebody got from here."""
    missed: int
    """Calls that found none ready, and waited for one to be made."""
    image: str
    config: dict[str, Any]
    idle_s: float | None
    asleep: bool
    """Nobody took a box for `idle_s`: it is empty until somebody asks for one."""
    fault: str | None
    """Why the last box could not be made."""
    owner: Owner
    in_file: bool
    """Whether it is in node.yaml."""


class List(Struct, frozen=True):
    """Which sandboxes to list; every condition given must hold."""

    all: bool = False
    """Those that are gone too: the last 1,000."""
    labels: dict[str, str] = {}
    state: State | None = None


class SandboxInfo(Struct, frozen=True):
    id: str
    name: str
    state: State
    image: str
    node: str
    """The host's name."""
    created: float
    """Unix time in seconds."""
    owner: Owner = "connection"
    labels: dict[str, str] = {}
    unenforced: list[str] = []
    """What this host cannot enforce: limit names, and "kill-scope" where processes are found without a cgroup."""
    env: dict[str, str] = {}
    """Environment of every session and execute."""
    cause: Cause | None = None
    """How it ended, once it has."""
    ended: float | None = None
    """When, in Unix time."""


class Snapshot(Struct, frozen=True):
    id: str
    name: str


class SnapshotRef(Struct, frozen=True):
    name: str


class SnapshotInfo(Struct, frozen=True):
    name: str
    image: str
    image_id: str
    """What the files stand on, however its name moves."""
    created: float
    """Unix time in seconds."""
    sandbox: str
    """The id of the box that it was taken of."""
    config: dict[str, Any]
    """That box's SandboxConfig."""
    first_id: int
    """The host's id of the box's root: on disk, all owners are counted from it."""
    size_bytes: int = 0
    nodes: list[str] = []
    """Of a cluster, those that have it."""


class Bring(Struct, frozen=True):
    """A snapshot that this node is to have."""

    name: str
    nodes: list[str]
    """Of the cluster, that have it."""


class ImageRef(Struct, frozen=True):
    name: str


class Parcel(Struct, frozen=True):
    """An item of snapshot.read and image.read: at first what it is, then its bytes, at last their BLAKE2b."""

    snapshot: SnapshotInfo | None = None
    tree: str = ""
    """Digest of the files as they lie there (container/parcel.py)."""
    image_id: str = ""
    data: bytes = b""
    digest: str = ""


class Fork(Struct, frozen=True):
    id: str
    name: str | None = None
    """None draws one."""
    owner: Owner | None = None
    """None: as the origin's."""


class Stats(Struct, frozen=True):
    cpu_s: float
    memory_bytes: int
    memory_limit: int
    """0: none."""
    pids: int
    pids_limit: int
    """0: none."""
    oom_kills: int
    disk_bytes: int
    """Bytes in the writable layer."""
    disk_limit: int = 0
    """0: none."""


class ProcessInfo(Struct, frozen=True):
    """One process of a box, numbered and named as the box itself does."""

    pid: int
    parent: int
    """0: none in the box."""
    user: str
    """Its name in the box's /etc/passwd, else the uid."""
    command: str
    """The command line, at most 4,096 bytes of it; [name] where there is none."""
    state: str
    """R running, S sleeping, D waiting for a disk, T stopped, Z ended and not waited for."""
    cpu_s: float
    memory_bytes: int
    """Resident; pages that several processes share count for each."""
    session: str | None = None
    """The session that started it, or whose shell it is; None for init, programs and debug shells."""
    birth: int = 0
    """With `pid` it names this process for good."""


class Signal(Struct, frozen=True):
    id: str
    pid: int
    """As the box numbers it."""
    signal: str = "TERM"
    birth: int = 0
    """Of the process meant; 0: whoever has that pid now."""


class SetEnv(Struct, frozen=True):
    id: str
    changes: dict[str, str | None]
    """None: the variable is removed."""


class Terminal(Struct, frozen=True):
    """A shell on a terminal of its own."""

    id: str
    console: str = ""
    """A unix socket of the caller's, on this host: the terminal's master is sent there (SCM_RIGHTS), and held by nobody
    else, so that the shell is hung up when the caller dies. "" in terminal.open, where the node keeps it."""
    session: str | None = None
    """Begin with this session's state."""
    term: str = "xterm"
    rows: int = 24
    columns: int = 80


class TerminalEnd(Struct, frozen=True):
    exit_code: int
    note: str = ""
    """Why, where it did not end by itself."""


class TerminalInput(Struct, frozen=True):
    """A part of terminal.open: what was typed, and the window's size where that has changed."""

    data: bytes = b""
    rows: int = 0
    columns: int = 0


class TerminalOutput(Struct, frozen=True):
    """An item of terminal.open; the first one, empty, says that the shell is there."""

    data: bytes = b""
    end: TerminalEnd | None = None
    """Of the last one."""


class Recycled(Struct, frozen=True):
    ok: bool
    reason: str = ""
    """Why it could not be made new again; the sandbox has then been destroyed."""


class Restore(Struct, frozen=True):
    id: str
    restart: bool = False
    """Stops it first where it runs."""


class Restored(Struct, frozen=True):
    info: SandboxInfo
    cause: Cause | None
    """How it had ended; None where somebody stopped it, or it ran on."""
    sessions: list[str] = []
    """They come back at their next command, with folder, variables, functions, aliases and options."""
    lost: list[str] = []
    """What cannot come back, in words; [] where it ran on."""


class NetworkEvent(Struct, frozen=True):
    """One connection that a program in a box asked the proxy for."""

    time: float
    """Unix time in seconds."""
    method: str
    """CONNECT, or the method of a plain HTTP request; "" where the request could not be read."""
    host: str
    port: int
    verdict: Literal["allowed", "refused", "failed"]
    """refused: by a rule, or because the request could not be read. failed: the host did not answer."""
    reason: str = ""
    """The sentence that the program was told; of an allowed one, why it was broken off."""
    address: str = ""
    """What the name led to."""
    sent_bytes: int = 0
    received_bytes: int = 0
    open: bool = False


class NetworkInfo(Struct, frozen=True):
    network: str
    """none, open, or allow:HOST,…"""
    allowed: int = 0
    """Connections through the proxy that have ended, by verdict."""
    refused: int = 0
    failed: int = 0
    open: int = 0
    """Those under way."""
    recent: list[NetworkEvent] = []
    """The last ones, the oldest first, those that are open at the end."""


class Connect(Struct, frozen=True):
    """A connection from the host to a port of a box. Either way go parts of bytes, an empty one at the end of what that
    side sends; the first part that comes out is empty too and says that something listens."""

    id: str
    port: int


class SessionSpec(Struct, frozen=True):
    id: str
    session: str = DEFAULT_SESSION
    env: dict[str, str] = {}
    cwd: str | None = None


class SessionInfo(Struct, frozen=True):
    session: str
    pid: int
    """Of the shell, on the host; 0 when it is between two shells."""
    busy: bool
    created: float


class Run(Struct, frozen=True):
    id: str
    command: bytes
    session: str = DEFAULT_SESSION
    timeout: float | None = None
    """Seconds from the moment the shell is given the command; waiting for the session's turn does not count."""
    max_output: int = MAX_OUTPUT


class Execute(Struct, frozen=True):
    id: str
    argv: list[str]
    timeout: float | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    stdin: bytes = b""
    max_output: int = MAX_OUTPUT


class Observation(Struct, frozen=True):
    stdout: bytes
    stderr: bytes
    exit_code: int | None
    """None where no process ended by itself: timeout, lost. A signal's death is 128 + signal, as in a shell."""
    outcome: Outcome
    session_restarted: bool = False
    """A new shell was opened for this command or at its end: variables may be those of the command before."""
    truncated_bytes: int = 0
    """Bytes of both streams that were read and dropped over max_output."""
    duration_s: float = 0.0
    events: dict[str, int] = {}
    """Limits met while it ran that did not end it: "oom_kills", "pids_refused", each with how often (meter.py)."""
    cause: Cause | None = None
    """Where the outcome is "lost": how the sandbox ended."""

    @property
    def output(self) -> str:
        """Both streams as text: stdout, then stderr."""
        return (self.stdout + self.stderr).decode("utf-8", "replace")


class Start(Struct, frozen=True):
    """A command that goes on whatever becomes of who started it: a line for a session, or a program."""

    id: str
    command_id: str
    """Names it. Sent twice, it is run once."""
    command: bytes | None = None
    session: str = DEFAULT_SESSION
    argv: list[str] | None = None
    env: dict[str, str] = {}
    """Of a program; a session's is its own."""
    cwd: str | None = None
    stdin: bool = False
    """Whether it will be sent input; else it reads /dev/null."""
    timeout: float | None = None
    max_output: int = MAX_OUTPUT


class CommandRef(Struct, frozen=True):
    id: str
    command_id: str
    output: bool = True
    """Whether `command.wait` answers with what was printed, too."""


class CommandInfo(Struct, frozen=True):
    command_id: str
    session: str | None
    """None: a program without a shell."""
    text: str
    """The beginning of its first line."""
    state: Literal["queued", "running", "done"]
    begun: float
    """Unix time in seconds."""
    output_bytes: int
    """Kept of both streams so far."""
    outcome: Outcome | None = None
    exit_code: int | None = None


class ReadOutput(Struct, frozen=True):
    id: str
    command_id: str
    offset: int = 0
    follow: bool = True


class OutputChunk(Struct, frozen=True):
    offset: int
    """Of its first byte in the output of both streams, in order of arrival."""
    stream: Literal["stdout", "stderr"]
    data: bytes


class SendInput(Struct, frozen=True):
    id: str
    command_id: str
    data: bytes = b""
    end: bool = False
    """Closes the input after `data`."""


class SendSignal(Struct, frozen=True):
    id: str
    command_id: str
    signal: int


class WriteFile(Struct, frozen=True):
    id: str
    path: bytes
    data: bytes
    mode: int = 0o644
    append: bool = False


class ReadFile(Struct, frozen=True):
    id: str
    path: bytes
    offset: int = 0
    limit: int = 16 << 20


class FileChunk(Struct, frozen=True):
    data: bytes
    size: int
    """Of the whole file, in bytes, when it was read."""
    mode: int = 0o644


class ListFiles(Struct, frozen=True):
    id: str
    path: bytes


class FileStat(Struct, frozen=True):
    name: str
    """Bytes that are not UTF-8 are shown with escapes. In a recursive list, the path from the folder on."""
    kind: Literal["file", "dir", "link", "other"]
    size: int
    mode: int
    mtime: float = 0.0
    """Unix time in seconds."""
    raw: bytes | None = None
    """The name's bytes, where they are not UTF-8."""
    target: str | None = None
    """Where a link points to; in answers about one path only."""

    @property
    def path_bytes(self) -> bytes:
        """The exact name."""
        return self.name.encode() if self.raw is None else self.raw


class PathOf(Struct, frozen=True):
    """The body of file.get, file.put and file.walk."""

    id: str
    path: bytes


class StatFile(Struct, frozen=True):
    id: str
    path: bytes
    follow: bool = True
    """Tell of what a link at the path's end points to, not of the link."""


class MakeFolder(Struct, frozen=True):
    id: str
    path: bytes
    mode: int = 0o755


class RemoveFile(Struct, frozen=True):
    id: str
    path: bytes
    recursive: bool = False


class MoveFile(Struct, frozen=True):
    id: str
    source: bytes
    target: bytes


class WatchFiles(Struct, frozen=True):
    id: str
    path: bytes
    recursive: bool = False


class FileEvent(Struct, frozen=True):
    """One change in a watched folder."""

    kind: Literal["created", "modified", "deleted", "moved", "overflow"]
    """overflow: changes were lost; look at the folder yourself."""
    path: str
    """As the box sees it; bytes that are not UTF-8 are shown with escapes."""
    moved_from: str | None = None
    """The path before, of `moved`."""


class Logs(Struct, frozen=True):
    id: str
    offset: int = 0
    follow: bool = False


class LogChunk(Struct, frozen=True):
    offset: int
    """Of the first byte of `data` in the sandbox's log; the next call's offset is offset + len(data)."""
    data: bytes


class NodeInfo(Struct, frozen=True):
    node: str
    pid: int
    version: str
    sandboxes: int
    rootless: bool


class Took(Struct, frozen=True):
    """How long something took, in buckets."""

    bounds: tuple[float, ...]
    """Seconds; a bucket ends with each, the last one has no end."""
    counts: list[int]
    """One more than there are bounds."""
    sum_s: float
    failed: int
    """Of all, those that failed."""


class NodeMetrics(Struct, frozen=True):
    """What a node does now, and has done since its start."""

    node: str
    sandboxes: dict[str, int]
    """How many, by state; those of warm pools are in pool.list."""
    limit: int
    """How many starts and removals may be under way at once now: admission's."""
    running: int
    waiting: dict[str, int]
    """By owner."""
    took: dict[str, Took]
    """start, remove: in Podman; wait: before either."""


class Empty(Struct, frozen=True):
    """A body with nothing in it."""


BODIES: dict[str, type[Struct]] = {
    "pool.set": PoolSet,
    "pool.list": Empty,
    "pool.filled": PoolRef,
    "pool.delete": PoolRef,
    "sandbox.create": Create,
    "sandbox.list": List,
    "sandbox.get": Ref,
    "sandbox.claim": Ref,
    "sandbox.abandon": Ref,
    "sandbox.restore": Restore,
    "sandbox.stop": Ref,
    "sandbox.start": Ref,
    "sandbox.delete": Ref,
    "sandbox.stats": Ref,
    "sandbox.recycle": Ref,
    "sandbox.snapshot": Snapshot,
    "sandbox.fork": Fork,
    "snapshot.list": Empty,
    "snapshot.delete": SnapshotRef,
    "snapshot.read": SnapshotRef,
    "snapshot.bring": Bring,
    "image.read": ImageRef,
    "image.write": ImageRef,
    "sandbox.processes": Ref,
    "sandbox.signal": Signal,
    "sandbox.env": Ref,
    "sandbox.set_env": SetEnv,
    "sandbox.terminal": Terminal,
    "terminal.open": Terminal,
    "sandbox.network": Ref,
    "port.connect": Connect,
    "session.create": SessionSpec,
    "session.close": SessionSpec,
    "session.list": Ref,
    "session.run": Run,
    "execute": Execute,
    "command.start": Start,
    "command.list": Ref,
    "command.wait": CommandRef,
    "command.cancel": CommandRef,
    "command.output": ReadOutput,
    "command.input": SendInput,
    "command.signal": SendSignal,
    "file.write": WriteFile,
    "file.read": ReadFile,
    "file.list": ListFiles,
    "file.walk": PathOf,
    "file.stat": StatFile,
    "file.mkdir": MakeFolder,
    "file.remove": RemoveFile,
    "file.move": MoveFile,
    "file.get": PathOf,
    "file.put": PathOf,
    "file.watch": WatchFiles,
    "logs": Logs,
    "node.info": Empty,
    "node.metrics": Empty,
}
"""The body of each method: `rpc.Server(address, host.handlers(), types=BODIES)`."""
