"""Calls, streams and cancellation between the processes of one run.

In: an address (`unix://PATH`, `ipc://PATH`, `tcp://HOST:PORT`, `hub://…`) and handlers by method name. Out: their
replies, or the same RockrollError that the handler raised. Leaves it to others what the bodies mean and who starts
the processes.

`unix://` is a stream socket: 0.05 ms a call, the kernel's word on who calls (SO_PEERCRED), and an end-of-file when the
other side dies. `ipc://` and `tcp://` are ZeroMQ DEALER (client) and ROUTER (server), 0.2 ms: a client may come before
its server and survives the server's restart. `hub://` (trunk.py) listens nowhere: both ends dial out to a hub, go on
where they were after a break, and hear from it that the other is gone for good. Frames are the same on all.
"""

from rockroll.rpc.client import Client
from rockroll.rpc.dial import connect
from rockroll.rpc.frame import MAX_MESSAGE
from rockroll.rpc.keys import key_of
from rockroll.rpc.server import Handler, Parts, Peer, Server

__all__ = ["MAX_MESSAGE", "Client", "Handler", "Parts", "Peer", "Server", "connect", "key_of"]
