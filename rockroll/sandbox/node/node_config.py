"""What the owner of this machine allows: `$ROCKROLL_HOME/node.yaml`, checked to the last key.

In: the file, or none. Out: a NodeConfig, or a UsageError that names the line, the key and the nearest valid one. Leaves
counting to quotas.py, the host's own limits to limits.py and filling pools to warm.py.

configs/node.yaml is a sample with every key. A changed file is read again: a new quota holds from the next box on.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from rockroll import home, units
from rockroll.errors import UsageError
from rockroll.sandbox.config import SandboxConfig

POOL_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
MAX_POOL = 1000
PERSONAL = ("name", "ttl", "idle_ttl", "labels")
"""Of a SandboxConfig: what a box gets when it is handed out, and no part of what its pool makes."""


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most that all boxes of one owner, or of the node, may be granted together; None: no limit."""

    boxes: int | None = None
    cpus: float | None = None
    memory: str | int | None = None
    pids: int | None = None

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else units.size(self.memory)


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: Quota = Quota()
    """For all boxes of the node."""
    owner: Quota = Quota()
    """For each owner that is not named below."""
    owners: dict[str, Quota] = {}
    """By the label `owner` of its boxes."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the host's own limits may be used. A box's memory and pids are ceilings, not reservations: an idle box
    takes 5 MiB and some five processes, whatever its limits are."""

    memory_overcommit: float = 32.0
    """The sum of all boxes' memory limits may be this many times the host's memory."""
    pids_overcommit: float = 8.0
    """The sum of all boxes' pids limits may be this many times what the host has."""
    keep_memory: str | int = "256m"
    """No box is made where less than this would be left of the memory that is free now."""
    keep_disk: str | int = "512m"
    """The same for the disk under Podman's store."""
    allow_unenforced: bool = False
    """Every box runs here also without the limits that this host cannot enforce, as if it had asked so itself."""


class Starts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many boxes may be made or removed at once; None: found by measuring (aimd.py)."""

    least: int | None = None
    most: int | None = None


class PoolSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A warm pool."""

    size: int
    """How many boxes stand ready."""
    config: dict[str, Any] = {}
    """Fields of SandboxConfig: a box that is asked for with the same ones comes from this pool."""
    idle: str | float | None = "1h"
    """Given up when nobody took a box for this long, and filled again when somebody asks for one; None: never."""

    @property
    def idle_s(self) -> float | None:
        return None if self.idle is None else units.seconds(self.idle)

    def sandbox(self) -> SandboxConfig:
        """ValueError for a wrong field."""
        return SandboxConfig(**{**self.config, "mounts": tuple(self.config.get("mounts", ()))})


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    quotas: Quotas = Quotas()
    limits: Limits = Limits()
    starts: Starts = Starts()
    pools: dict[str, PoolSpec] = {}


def path() -> Path:
    """Where the file is looked for."""
    return home.home() / "node.yaml"


def load(file: Path) -> NodeConfig:
    """NodeConfig() where there is no file. Raises UsageError."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return NodeConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    return parse(text, str(file))


def parse(text: str, file: str = "node.yaml") -> NodeConfig:
    """The config that the text is. Raises UsageError."""
    lines: dict[str, int] = {}
    try:
        tree = _plain(yaml.compose(text, Loader=yaml.SafeLoader), "", lines, file)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise UsageError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None

    def refuse(key: str, said: str) -> UsageError:
        line = lines.get(key) or lines.get(key.rpartition(".")[0])
        return UsageError(f"{file}{f':{line}' if line else ''}: {f'{key}: ' if key else ''}{said}")

    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise refuse("", f"a mapping of {', '.join(NodeConfig.__struct_fields__)} is wanted; got {tree!r}")
    _known(tree, NodeConfig, "", refuse)
    # One by one first: msgspec does not tell which entry of a dict is wrong.
    for key, type_ in (("quotas.owners", Quota), ("pools", PoolSpec)):
        for name, body in _entries(tree, key).items():
            _convert(body, type_, f"{key}.{name}", refuse)
    config = _convert(tree, NodeConfig, "", refuse)
    _check(config, refuse)
    return config


_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_Refuse = Callable[[str, str], UsageError]


def _entries(tree: dict[str, Any], key: str) -> dict[str, Any]:
    found: Any = tree
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _convert(tree: Any, type_: type[_Struct], key: str, refuse: _Refuse) -> _Struct:
    try:
        return msgspec.convert(tree, type_)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$.")
        parts = [part for part in (key, place.rstrip("`")) if part]
        raise refuse(".".join(parts), said[0].lower() + said[1:]) from None


def _plain(node: yaml.Node | None, key: str, lines: dict[str, int], file: str) -> Any:
    """The YAML as plain values; where each stands goes into `lines`."""
    if node is None:
        return None
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for name_node, value in node.value:
            name = str(name_node.value)
            if name in found:
                raise UsageError(f"{file}:{name_node.start_mark.line + 1}: {name} stands here twice; keep one")
            below = f"{key}.{name}" if key else name
            lines[below] = name_node.start_mark.line + 1
            found[name] = _plain(value, below, lines, file)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, key, lines, file) for item in node.value]
    return yaml.SafeLoader("").construct_object(node)


def _known(tree: Any, type_: Any, key: str, refuse: _Refuse) -> None:
    """Every key is one that there is."""
    if not isinstance(tree, dict):
        return  # msgspec says what is wanted instead
    fields = {field.name: field.type for field in msgspec.structs.fields(type_)}
    for name, value in tree.items():
        below = f"{key}.{name}" if key else name
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise refuse(below, f"no such key{hint} (there are {', '.join(fields)})")
        inner = fields[name]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            _known(value, inner, below, refuse)
        elif name in ("owners", "pools") and isinstance(value, dict):
            for entry, body in value.items():
                _known(body, Quota if name == "owners" else PoolSpec, f"{below}.{entry}", refuse)


def _check(config: NodeConfig, refuse: _Refuse) -> None:
    """What types do not say."""
    quotas = {"node": config.quotas.node, "owner": config.quotas.owner}
    quotas |= {f"owners.{name}": quota for name, quota in config.quotas.owners.items()}
    for name, quota in quotas.items():
        for field in Quota.__struct_fields__:
            value = getattr(quota, field)
            try:
                amount = quota.memory_bytes if field == "memory" else value
            except ValueError as error:
                raise refuse(f"quotas.{name}.{field}", str(error)) from None
            if amount is not None and amount < 0:
                raise refuse(f"quotas.{name}.{field}", f"zero or more; got {value}")
    for field in ("memory_overcommit", "pids_overcommit"):
        if (value := getattr(config.limits, field)) <= 0:
            raise refuse(f"limits.{field}", f"above zero, 1 for no overcommitment; got {value:g}")
    for field in ("keep_memory", "keep_disk"):
        try:
            units.size(getattr(config.limits, field))
        except ValueError as error:
            raise refuse(f"limits.{field}", str(error)) from None
    for field in Starts.__struct_fields__:
        value = getattr(config.starts, field)
        if value is not None and value < 1:
            raise refuse(f"starts.{field}", f"at least one must be able to start; got {value}")
    if config.starts.least and config.starts.most and config.starts.least > config.starts.most:
        raise refuse("starts.least", f"at most starts.most, {config.starts.most}; got {config.starts.least}")
    for name, pool in config.pools.items():
        if fault := pool_fault(name, pool):
            raise refuse(f"pools.{name}", fault)


def pool_fault(name: str, pool: PoolSpec) -> str | None:
    """What is wrong with a pool; None where nothing is."""
    if not POOL_NAME.fullmatch(name):
        return f"a pool's name is at most 63 letters, digits and _ . -, a letter or digit first; got {name!r}"
    if not 0 <= pool.size <= MAX_POOL:
        return f"size: from 0 to {MAX_POOL}; got {pool.size}"
    try:
        idle = pool.idle_s
    except ValueError as error:
        return f"idle: {error}"
    if idle is not None and idle <= 0:
        return f"idle: a duration above zero, as in 10m, or null for never; got {pool.idle!r}"
    if personal := sorted({*PERSONAL, "snapshot"} & pool.config.keys()):
        return f"config.{personal[0]}: belongs to one box or to one moment, not to a pool; leave it out"
    known = [field.name for field in dataclasses.fields(SandboxConfig)]
    if unknown := sorted(pool.config.keys() - set(known)):
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"config.{unknown[0]}: a sandbox has no such setting{hint} (it has {', '.join(known)})"
    try:
        pool.sandbox()
    except (TypeError, ValueError) as error:
        return f"config.{error}"
    return None
