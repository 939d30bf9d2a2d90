"""A listening socket inside a container's network namespace.

In: the pid of a process of the container, a port. Out: a socket bound to 127.0.0.1:port in there, owned by this
process. Leaves serving it, and binding it again after a restart, to the caller. Needs CAP_SYS_ADMIN over the
namespace's owner: root has it; an ordinary user's node has it because it runs inside `podman unshare`.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from fcntl import ioctl

from rockroll.errors import HostError, SandboxLost

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)


def listen_in(pid: int, port: int, backlog: int = 128) -> socket.socket:
    """A non-blocking socket listening on 127.0.0.1:port in the network namespace of pid; about 0.7 ms.

    Blocks for that long (it makes and joins a thread: only a thread may leave the process's namespace, and it ends
    there, so that no other code ever runs in the wrong one). Raises SandboxLost when pid is gone, HostError when
    this process may not enter or the port is taken.
    """
    result: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            result.append(_listen_here(pid, port, backlog))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=enter, name=f"netns-{pid}")
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise _explain(result[0], pid, port) from result[0]
    return result[0]


def _listen_here(pid: int, port: int, backlog: int) -> socket.socket:
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(namespace), os.stat("/proc/thread-self/ns/net")):
            raise ProcessLookupError(f"{pid} is in this process's own network: not a sandbox, its number was reused")
        if _libc.setns(namespace, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), "setns")
    finally:
        os.close(namespace)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", ioctl(listening, SIOCGIFFLAGS, request))
        if not flags & IFF_UP:
            ioctl(listening, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(backlog)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _explain(error: OSError, pid: int, port: int) -> Exception:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return SandboxLost(f"the sandbox's first process {pid} is gone: its endpoint cannot be opened")
    if isinstance(error, PermissionError):
        return HostError(f"this process may not enter the network namespace of {pid}: run it inside `podman unshare`")
    return HostError(f"127.0.0.1:{port} in the sandbox cannot be opened: {error}")
