"""What one sandbox is asked to be.

In: plain values, as people write them ("512m", "1h", "SRC:DST:ro"). Out: a frozen SandboxConfig whose properties
give bytes, seconds and parsed mounts. Leaves the Podman request to profile.py and the life to the host.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec

from rockroll import units
from rockroll.errors import UsageError
from rockroll.sandbox.network import Policy

DEFAULT_IMAGE = "localhost/rockroll-base:1"
MIN_MEMORY = 6 * 2**20
MIN_DISK = 16 * 2**20
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
ENV_KEY = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Mount(NamedTuple):
    """One host path shown in the sandbox."""

    source: str
    destination: str
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """A sandbox with no network, no capability and no host path that is not named here."""

    snapshot: str | None = None
    """A snapshot whose files the box begins with, and whose image it stands on; None: the image alone."""
    image: str | None = None
    """An image in the local Podman store, or None for rockroll's own (see `rockroll image build`)."""
    name: str | None = None
    """A name unique in this $ROCKROLL_HOME; None draws one."""
    cpus: float = 1.0
    """CPU time per second of wall time, as a quota; 0.5 is half a core."""
    cpuset: str | None = None
    """The CPUs to run on, as in "0-1" or "0,2-3"; None: any."""
    memory: str | int = "512m"
    """Memory and swap together; what goes over is killed by the kernel."""
    pids: int = 256
    """Most processes and threads at one time."""
    disk: str | int | None = None
    """Most bytes that all files the box writes may take, its tables of files (3 %) included; None: no limit."""
    network: str | list[str] | tuple[str, ...] = "none"
    """"none": only a loopback of its own. "open": Podman's default network. A list of hosts, as in ["pypi.org",
    "*.debian.org", "example.com:8443"], or "allow:pypi.org,*.debian.org": as "none", with a proxy to those hosts
    (docs/network.md)."""
    ttl: str | float | None = None
    """The sandbox is deleted this long after its creation; None: no limit."""
    idle_ttl: str | float | None = None
    """The sandbox is deleted when it has had no call under way for this long; None: no limit."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of every process in the sandbox."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that `sandbox ls` shows; keys that begin with "rockroll." are rockroll's own."""
    mounts: tuple[str, ...] = ()
    """Host paths to show inside: SRC:DST or SRC:DST:ro. What is writable here leads out of the sandbox."""
    user: str | None = None
    """User in the image (name or uid[:gid]) that commands run as; None: the image's own, mostly root."""
    allow_unenforced: bool = False
    """Start even where this host cannot enforce a limit; which ones is then in SandboxInfo.unenforced."""

    def __post_init__(self) -> None:
        if self.name is not None and not NAME.fullmatch(self.name):
            raise ValueError(f"name: at most 63 letters, digits and _ . -, a letter or digit first; got {self.name!r}")
        if not 0.01 <= self.cpus <= 4096:
            raise ValueError(f"cpus: from 0.01 to 4096; got {self.cpus}; try cpus: 1")
        _ = self.parsed_cpuset
        if self.memory_bytes < MIN_MEMORY:
            raise ValueError(f"memory: {self.memory} is under the 6 MB that a shell needs; try memory: 64m")
        if self.disk_bytes is not None and self.disk_bytes < MIN_DISK:
            raise ValueError(f"disk: {self.disk} is under the 16 MB that a file system needs; try disk: 1g")
        if self.snapshot is not None and not NAME.fullmatch(self.snapshot):
            raise ValueError(f"snapshot: the name of a snapshot (`rockroll sandbox snapshots`); got {self.snapshot!r}")
        if not 4 <= self.pids <= 4_194_304:
            raise ValueError(f"pids: from 4 (init, a shell and what it starts) to 4194304; got {self.pids}")
        object.__setattr__(self, "network", _network(self.network))
        if self.ttl is not None and self.ttl_s <= 0:  # type: ignore[operator]
            raise ValueError(f"ttl: a duration above zero, as in 1h; got {self.ttl!r}")
        if self.idle_ttl is not None and self.idle_ttl_s <= 0:  # type: ignore[operator]
            raise ValueError(f"idle_ttl: a duration above zero, as in 10m; got {self.idle_ttl!r}")
        for key, value in self.env.items():
            if not ENV_KEY.fullmatch(key):
                raise ValueError(f"env: a name is letters, digits and _, no digit first; got {key!r}")
            if "\0" in value:
                raise ValueError(f"env: the value of {key} holds a NUL byte, which no environment can carry")
        for key in self.labels:
            if not key or key.startswith("rockroll."):
                raise ValueError(f'labels: keys that begin with "rockroll." are reserved; got {key!r}')
        _ = self.parsed_mounts

    @property
    def image_name(self) -> str:
        """The image, the default one filled in."""
        return self.image or DEFAULT_IMAGE

    @property
    def allowed(self) -> tuple[str, ...]:
        """The hosts that a proxy leads to; () without one."""
        return () if isinstance(self.network, str) else tuple(self.network)

    @property
    def network_text(self) -> str:
        """`network` as a word, as the command line takes it."""
        return self.network if isinstance(self.network, str) else f"allow:{','.join(self.network)}"

    @property
    def parsed_cpuset(self) -> frozenset[int] | None:
        """The numbers in `cpuset`, or None. That this host has them is the host's to check."""
        if self.cpuset is None:
            return None
        try:
            return units.numbers(self.cpuset)
        except ValueError as error:
            raise ValueError(f"cpuset: {error}") from None

    @property
    def memory_bytes(self) -> int:
        """Memory limit in bytes, rounded down to a page as the kernel does."""
        try:
            return units.size(self.memory) // 4096 * 4096
        except ValueError as error:
            raise ValueError(f"memory: {error}") from None

    @property
    def disk_bytes(self) -> int | None:
        """Disk limit in bytes, rounded down to a block of the file system; None: no limit."""
        if self.disk is None:
            return None
        try:
            return units.size(self.disk) // 4096 * 4096
        except ValueError as error:
            raise ValueError(f"disk: {error}") from None

    @property
    def ttl_s(self) -> float | None:
        """Lifetime in seconds, or None."""
        return _seconds("ttl", self.ttl)

    @property
    def idle_ttl_s(self) -> float | None:
        """Seconds without a call, or None."""
        return _seconds("idle_ttl", self.idle_ttl)

    @property
    def parsed_mounts(self) -> list[Mount]:
        """The mounts, parsed; ValueError says how to write one. That the source exists is the host's to check."""
        mounts = []
        for text in self.mounts:
            source, _, rest = text.partition(":")
            destination, _, mode = rest.partition(":")
            if not source.startswith("/") or not destination.startswith("/") or mode not in ("", "ro", "rw"):
                raise ValueError(f"mounts: SRC:DST or SRC:DST:ro with two absolute paths; got {text!r}")
            if ".." in PurePosixPath(destination).parts or PurePosixPath(destination) == PurePosixPath("/"):
                raise ValueError(f"mounts: the destination is a path below / without ..; got {text!r}")
            mounts.append(Mount(source, destination, mode == "ro"))
        return mounts


def _network(asked: str | Sequence[str]) -> str | tuple[str, ...]:
    """The hosts as a tuple, whichever way they were written."""
    if isinstance(asked, str):
        if asked in ("none", "open"):
            return asked
        if not asked.startswith("allow:"):
            raise ValueError(
                f'network: "none" or "open", or hosts to allow, as in ["pypi.org", "*.debian.org"] or "allow:pypi.org";'
                f" got {asked!r}"
            )
        asked = asked.removeprefix("allow:").split(",")
    if not asked:
        raise ValueError('network: an empty list allows nobody; say "none"')
    hosts = tuple(dict.fromkeys(host.strip() if isinstance(host, str) else host for host in asked))
    Policy(hosts)
    return hosts


def _seconds(name: str, value: str | float | None) -> float | None:
    try:
        return None if value is None else units.seconds(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def kind(config: SandboxConfig) -> bytes:
    """The same for two configs whose boxes are made the same way."""
    fields = dataclasses.asdict(dataclasses.replace(config, name=None, ttl=None, idle_ttl=None, labels={}))
    fields |= {"image": config.image_name, "memory": config.memory_bytes, "disk": config.disk_bytes}
    fields["cpuset"] = sorted(config.parsed_cpuset or ())
    return msgspec.json.encode(fields, order="deterministic")


def config_of(fields: Mapping[str, Any]) -> SandboxConfig:
    """UsageError for a field that there is not, or a value that cannot be."""
    known = {each.name for each in dataclasses.fields(SandboxConfig)}
    if unknown := sorted(set(fields) - known):
        raise UsageError(f"a sandbox has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    try:
        return SandboxConfig(**{**fields, "mounts": tuple(fields.get("mounts", ()))})
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
