"""The key of links over tcp: who does not have it can neither call, answer, read nor change what is said.

In: a file. Out: CURVE (RFC 26) on ZeroMQ sockets. Leaves bringing the file to other hosts to whoever sets them up.

Both ends hold one file. The server's public key is never sent, and nobody can begin a handshake without it, so it is
kept as the secret that lets a client in; the secret key proves the server.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

import zmq

from rockroll import home
from rockroll.errors import HostError, UsageError


def default_path() -> Path:
    return home.home() / "rpc.key"


def make(path: Path) -> None:
    """A new key, readable by its owner only. Nothing happens where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    public, secret = zmq.curve_keypair()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(public + b"\n" + secret + b"\n")
        os.link(draft, path)  # whole, or not at all, and never over another's
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path) -> tuple[bytes, bytes]:
    try:
        if path.stat().st_mode & 0o077:
            raise HostError(f"{path} is a secret that others may read; chmod 600 it")
        lines = path.read_bytes().split()
    except OSError as error:
        raise HostError(
            f"the key of links over tcp cannot be read at {path} ({error.strerror}); "
            "copy it from the host where the run is"
        ) from None
    if len(lines) != 2 or any(len(each) != 40 for each in lines):
        raise HostError(f"{path} holds no key of two lines with 40 characters each; copy it again, or delete it")
    return lines[0], lines[1]


def key_of(address: str, key: str) -> Path | None:
    """The key file `key` for an address over tcp; None for other links, and where none is named."""
    return Path(key) if key and address.startswith("tcp://") else None


def serve_with(sock: Any, address: str, key: Path | None) -> None:
    """The server's end. Without `key`: the home's own, made where it is missing, for what others can reach."""
    if (path := _wanted(address, key)) is not None:
        make(path)
        sock.curve_publickey, sock.curve_secretkey = _read(path)
        sock.curve_server = True


def public_of(path: Path) -> str:
    """The server's public key in that file: 40 characters that let a client in."""
    return _read(path)[0].decode()


def call_with_public(sock: Any, public: str) -> None:
    """The client's end, where the server's public key came another way than in its file."""
    if len(public) != 40:
        raise HostError(f"a server's public key has 40 characters, this one {len(public)}; copy the cluster file again")
    sock.curve_serverkey = public.encode()
    sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()


def call_with(sock: Any, address: str, key: Path | None) -> None:
    """The client's end. HostError where a key is needed and there is none."""
    if (path := _wanted(address, key)) is not None:
        sock.curve_serverkey = _read(path)[0]
        sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()


def _wanted(address: str, key: Path | None) -> Path | None:
    scheme, _, place = address.partition("://")
    if scheme != "tcp":
        if key is not None:
            raise UsageError(f"a key is for tcp:// only, got {address!r}; the other links are this user's alone")
        return None
    return key or (None if _loopback(place.rpartition(":")[0]) else default_path())


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
