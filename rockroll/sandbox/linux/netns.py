"""Sockets inside a container's network namespace.

In: the pid of a process of the container, a port. Out: a socket bound to 127.0.0.1:port in there, or sockets to connect
to what listens in there, owned by this process. Leaves serving, and binding again after a restart, to the caller.
Needs CAP_SYS_ADMIN over the namespace's owner: root has it; an ordinary user's node has it because it runs inside
`podman unshare`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from fcntl import ioctl
from typing import TypeVar

from rockroll.errors import HostError, SandboxLost

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def listen_in(pid: int, port: int, backlog: int = 128) -> socket.socket:
    """A non-blocking socket listening on 127.0.0.1:port in the network namespace of pid; about 0.7 ms.

    Blocks for that long (it makes and joins a thread: only a thread may leave the process's namespace, and it ends
    there, so that no other code ever runs in the wrong one). Raises SandboxLost when pid is gone, HostError when
    this process may not enter or the port is taken.
    """
    try:
        return _inside(pid, lambda: _listen_here(port, backlog))
    except OSError as error:
        raise _explain(error, pid, f"127.0.0.1:{port} in the sandbox cannot be opened") from error


def sockets_in(pid: int) -> list[socket.socket]:
    """A TCP socket for IPv4, and one for IPv6 where the host has it, that connect, from anywhere, to what listens in
    the network namespace of pid. Blocks and raises as listen_in."""

    def both() -> list[socket.socket]:
        _raise_loopback()
        found = [socket.socket(socket.AF_INET)]
        with contextlib.suppress(OSError):
            found.append(socket.socket(socket.AF_INET6))
        return found

    try:
        return _inside(pid, both)
    except OSError as error:
        raise _explain(error, pid, "no connection into the sandbox can be made") from error


def _inside(pid: int, work: Callable[[], T]) -> T:
    """What `work` returns in a thread that has entered the namespace."""
    result: list[T] = []
    failed: list[OSError] = []

    def enter() -> None:
        # It goes back: for a moment after join() the kernel still lists it, wherever it is.
        try:
            own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(pid)
                result.append(work())
            finally:
                _libc.setns(own, CLONE_NEWNET)
                os.close(own)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name=f"netns-{pid}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return result[0]


def _enter(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.path.samestat(os.fstat(namespace), os.stat("/proc/thread-self/ns/net")):
            raise ProcessLookupError(f"{pid} is in this process's own network: not a sandbox, its number was reused")
        if _libc.setns(namespace, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), "setns")
    finally:
        os.close(namespace)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xh", ioctl(any_socket, SIOCGIFFLAGS, request))
        if not flags & IFF_UP:
            ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def _listen_here(port: int, backlog: int) -> socket.socket:
    _raise_loopback()
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(backlog)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _explain(error: OSError, pid: int, otherwise: str) -> Exception:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return SandboxLost(f"the sandbox's first process {pid} is gone: its network cannot be entered")
    if isinstance(error, PermissionError):
        return HostError(f"this process may not enter the network namespace of {pid}: run it inside `podman unshare`")
    return HostError(f"{otherwise}: {error}")
