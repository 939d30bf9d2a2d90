"""The node's methods as frozen Structs: what crosses between a client (SDK, CLI, pool) and the sandbox host.

In: the modules beside this one, one a subject. Out: their names, and the body of each method by its name. Leaves the
carrying to rpc, the doing to host.py and the comfortable surface to client.py.
"""

from __future__ import annotations

from rockroll.sandbox.wire.base import Empty as Empty
from rockroll.sandbox.wire.base import Ref as Ref
from rockroll.sandbox.wire.base import Struct as Struct
from rockroll.sandbox.wire.boxes import Cause as Cause
from rockroll.sandbox.wire.boxes import Create as Create
from rockroll.sandbox.wire.boxes import Fork as Fork
from rockroll.sandbox.wire.boxes import List as List
from rockroll.sandbox.wire.boxes import Owner as Owner
from rockroll.sandbox.wire.boxes import Recycled as Recycled
from rockroll.sandbox.wire.boxes import Restore as Restore
from rockroll.sandbox.wire.boxes import Restored as Restored
from rockroll.sandbox.wire.boxes import SandboxInfo as SandboxInfo
from rockroll.sandbox.wire.boxes import State as State
from rockroll.sandbox.wire.boxes import Stats as Stats
from rockroll.sandbox.wire.commands import DEFAULT_SESSION as DEFAULT_SESSION
from rockroll.sandbox.wire.commands import MAX_OUTPUT as MAX_OUTPUT
from rockroll.sandbox.wire.commands import CommandInfo as CommandInfo
from rockroll.sandbox.wire.commands import CommandRef as CommandRef
from rockroll.sandbox.wire.commands import Execute as Execute
from rockroll.sandbox.wire.commands import LogChunk as LogChunk
from rockroll.sandbox.wire.commands import Logs as Logs
from rockroll.sandbox.wire.commands import Observation as Observation
from rockroll.sandbox.wire.commands import Outcome as Outcome
from rockroll.sandbox.wire.commands import OutputChunk as OutputChunk
from rockroll.sandbox.wire.commands import ReadOutput as ReadOutput
from rockroll.sandbox.wire.commands import Run as Run
from rockroll.sandbox.wire.commands import SendInput as SendInput
from rockroll.sandbox.wire.commands import SendSignal as SendSignal
from rockroll.sandbox.wire.commands import SessionInfo as SessionInfo
from rockroll.sandbox.wire.commands import SessionSpec as SessionSpec
from rockroll.sandbox.wire.commands import Start as Start
from rockroll.sandbox.wire.files import FileChunk as FileChunk
from rockroll.sandbox.wire.files import FileEvent as FileEvent
from rockroll.sandbox.wire.files import FileStat as FileStat
from rockroll.sandbox.wire.files import ListFiles as ListFiles
from rockroll.sandbox.wire.files import MakeFolder as MakeFolder
from rockroll.sandbox.wire.files import MoveFile as MoveFile
from rockroll.sandbox.wire.files import PathOf as PathOf
from rockroll.sandbox.wire.files import ReadFile as ReadFile
from rockroll.sandbox.wire.files import RemoveFile as RemoveFile
from rockroll.sandbox.wire.files import StatFile as StatFile
from rockroll.sandbox.wire.files import WatchFiles as WatchFiles
from rockroll.sandbox.wire.files import WriteFile as WriteFile
from rockroll.sandbox.wire.inside import ProcessInfo as ProcessInfo
from rockroll.sandbox.wire.inside import SetEnv as SetEnv
from rockroll.sandbox.wire.inside import Signal as Signal
from rockroll.sandbox.wire.inside import Terminal as Terminal
from rockroll.sandbox.wire.inside import TerminalEnd as TerminalEnd
from rockroll.sandbox.wire.inside import TerminalInput as TerminalInput
from rockroll.sandbox.wire.inside import TerminalOutput as TerminalOutput
from rockroll.sandbox.wire.network import Connect as Connect
from rockroll.sandbox.wire.network import NetworkEvent as NetworkEvent
from rockroll.sandbox.wire.network import NetworkInfo as NetworkInfo
from rockroll.sandbox.wire.node import NodeInfo as NodeInfo
from rockroll.sandbox.wire.node import NodeMetrics as NodeMetrics
from rockroll.sandbox.wire.node import Took as Took
from rockroll.sandbox.wire.pools import PoolInfo as PoolInfo
from rockroll.sandbox.wire.pools import PoolRef as PoolRef
from rockroll.sandbox.wire.pools import PoolSet as PoolSet
from rockroll.sandbox.wire.stores import MOVED as MOVED
from rockroll.sandbox.wire.stores import Bring as Bring
from rockroll.sandbox.wire.stores import ImageRef as ImageRef
from rockroll.sandbox.wire.stores import Parcel as Parcel
from rockroll.sandbox.wire.stores import Snapshot as Snapshot
from rockroll.sandbox.wire.stores import SnapshotInfo as SnapshotInfo
from rockroll.sandbox.wire.stores import SnapshotRef as SnapshotRef

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
