"""The cluster file: all that a node or a client needs to dial a hub.

In: a path. Out: the hub's address and the key that lets one in; the file is its owner's alone (mode 0600). Leaves
bringing it to other machines to whoever sets them up.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from rockroll.errors import UsageError


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True):
    hub: str
    """tcp://IP:PORT."""
    server_key: str
    """The hub's public key, 40 characters: never sent, it lets in whoever has it."""

    @classmethod
    def read(cls, path: Path) -> ClusterFile:
        """UsageError where there is none, or others may read it."""
        try:
            if path.stat().st_mode & 0o077:
                raise UsageError(f"{path} holds a key and others may read it; chmod 600 it")
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise UsageError(
                f"the cluster file {path} cannot be read ({error.strerror}); `rockroll hub` writes one"
            ) from None
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path} is no cluster file ({error}); copy the one that `rockroll hub` writes") from None
        if not found.hub.startswith("tcp://") or len(found.server_key) != 40:
            raise UsageError(f"{path} names no hub at tcp://IP:PORT with a key of 40 characters; copy it again")
        return found

    def write(self, path: Path) -> None:
        """Whole, or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(self) + b"\n")
        draft.replace(path)
