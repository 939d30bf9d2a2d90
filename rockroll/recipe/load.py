"""A recipe file, checked to the last key.

In: a YAML file and `a.b=c` settings. Out: a RunConfig, or a RecipeError that names the file, the line and the nearest
valid key. Leaves what the values do to the rooms that own them. The only user of pydantic.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rockroll.controller.config import RunConfig
from rockroll.errors import RecipeError

_INTERNAL = {
    "engine": {"model": "model", "address": None, "version": None, "seed": "seed", "deterministic": "deterministic"},
    "train": {
        "model": "model",
        "address": None,
        "rendezvous": None,
        "seed": "seed",
        "version": None,
        "deterministic": "deterministic",
    },
    "sandbox": {"name": None, "ttl": None},
}
"""Keys that are rockroll's to fill in, with the top-level key to use instead where there is one."""

Path_ = tuple[str | int, ...]


def load(path: str | Path, settings: list[str] | None = None) -> RunConfig:
    """The recipe at `path`, with `settings` such as `train.lr=0.001` laid over it.

    Raises RecipeError: a missing file, YAML that does not parse, a key twice, an unknown key, a wrong value.
    """
    file = Path(path)
    try:
        text = file.read_text()
    except OSError as error:
        near = ", ".join(sorted(str(p) for p in Path("recipes").glob("*.yaml"))) or "none in ./recipes"
        raise RecipeError(f"{file}: no recipe can be read there ({error.strerror}); recipes here: {near}") from None
    lines: dict[Path_, str] = {}
    try:
        tree = _tree(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, str(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise RecipeError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{file}:1: a recipe is a mapping of keys such as name, steps and task; got {tree!r}")
    for setting in settings or []:
        _set(tree, setting, lines)
    _refuse_unknown(tree, RunConfig, (), lines, str(file))
    return _validate(tree, lines, str(file))


def dump(config: RunConfig) -> str:
    """The resolved recipe as YAML that `load` reads back to the same RunConfig."""
    tree = dataclasses.asdict(config)
    for section, keys in _INTERNAL.items():
        for key in keys:
            tree[section].pop(key, None)
    return yaml.safe_dump(_plain(tree), sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _tree(node: yaml.Node | None, path: Path_, lines: dict[Path_, str], file: str) -> Any:
    """The YAML node as plain values; where each of them stands goes into `lines`."""
    if node is None:
        return None
    lines.setdefault(path, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            here = f"{file}:{key_node.start_mark.line + 1}"
            if key in found:
                raise RecipeError(f"{here}: {key!r} stands here twice; keep one")
            lines[(*path, key)] = here
            found[key] = _tree(value_node, (*path, key), lines, file)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, (*path, i), lines, file) for i, item in enumerate(node.value)]
    word = node.value
    return word if _is_word(word, path) else yaml.SafeLoader("").construct_object(node)


def _is_word(text: str, path: Path_) -> bool:
    """`off` and `on` in a section of ours: some settings take them as words, and a switch takes the words too."""
    return len(path) == 2 and text in ("off", "on")


def _set(tree: dict[str, Any], setting: str, lines: dict[Path_, str]) -> None:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set takes KEY=VALUE, as in train.lr=0.001; got {setting!r}")
    try:
        value = text if _is_word(text, tuple(parts)) else yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    at: Any = tree
    path: list[str | int] = []
    for part in parts[:-1]:
        if isinstance(at, list):
            number = _entry(at, part, setting)
            at = at[number]
            path.append(number)
        else:
            if at.get(part) is None:
                at[part] = {}
            at = at[part]
            path.append(part)
        if not isinstance(at, dict | list):
            raise RecipeError(f"--set {setting}: {'.'.join(map(str, path))} is a value here, not a section")
    if isinstance(at, list):
        raise RecipeError(f"--set {setting}: {'.'.join(map(str, path))} is a list; say which key of which entry")
    at[parts[-1]] = value
    path.append(parts[-1])
    for i in range(1, len(path) + 1):
        lines[tuple(path[:i])] = f"--set {setting}"


def _entry(entries: list[Any], word: str, setting: str) -> int:
    """Which entry of a list is meant: by its `name`, or by its number from 0."""
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if word in names:
        return names.index(word)
    if word.isdigit() and int(word) < len(entries):
        return int(word)
    known = ", ".join(str(name) for name in names if name) or f"0 to {len(entries) - 1}"
    raise RecipeError(f"--set {setting}: there is no {word!r} in this list; it has {known}")


def _refuse_unknown(tree: dict[str, Any], cls: Any, path: Path_, lines: dict[Path_, str], file: str) -> None:
    hints = typing.get_type_hints(cls)
    internal = _INTERNAL.get(str(path[-1]), {}) if path else {}
    valid = [name for name in hints if name not in internal]
    for key, value in tree.items():
        at = lines.get((*path, key), file)
        if key in internal:
            use = f"set {internal[key]!r} at the top level" if internal[key] else "rockroll fills it in; leave it out"
            raise RecipeError(f"{at}: {'.'.join(map(str, (*path, key)))} is not for recipes: {use}")
        if key not in hints:
            close = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
            place = f"in {'.'.join(map(str, path))}" if path else "at the top level"
            cure = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
            raise RecipeError(f"{at}: unknown key {key!r} {place}; {cure}")
        section = _section(hints[key])
        if section is not None and isinstance(value, dict):
            _refuse_unknown(value, section, (*path, key), lines, file)
        named = _named(hints[key])
        for name, item in value.items() if named is not None and isinstance(value, dict) else ():
            if isinstance(item, dict):
                _refuse_unknown(item, named, (*path, key, name), lines, file)
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if section is not None and isinstance(item, dict):
                _refuse_unknown(item, section, (*path, key, i), lines, file)


def _section(hint: Any) -> Any:
    """The dataclass in a hint such as `AgentConfig | None` or `tuple[DomainConfig, ...]`, or None where it is a plain
    value."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) in (typing.Union, tuple):
        return next((s for s in map(_section, typing.get_args(hint)) if s is not None), None)
    return hint if dataclasses.is_dataclass(hint) else None


def _named(hint: Any) -> Any:
    """The dataclass of what a hint such as `dict[str, MemberConfig]` holds by name, or None."""
    inside = typing.get_args(hint) if typing.get_origin(hint) is dict else ()
    return inside[1] if inside and dataclasses.is_dataclass(inside[1]) else None


_adapter: TypeAdapter[RunConfig] | None = None


def _validate(tree: dict[str, Any], lines: dict[Path_, str], file: str) -> RunConfig:
    global _adapter
    if _adapter is None:
        RunConfig.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
        _adapter = TypeAdapter(RunConfig)
    try:
        return _adapter.validate_python(tree)
    except ValidationError as error:
        said = []
        for one in error.errors():
            loc = tuple(part for part in one["loc"] if not str(part).endswith("Config"))
            at = next((lines[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in lines), file)
            name = ".".join(str(part) for part in loc)
            if one["type"] == "missing":
                said.append(f"{at}: {name} is missing: {_doc(loc)}")
            else:
                what = one["msg"].removeprefix("Value error, ")
                got = "" if one["type"] == "value_error" else f"; got {one['input']!r}"
                said.append(f"{at}: {name + ': ' if name else ''}{what}{got}")
        raise RecipeError("\n".join(said)) from None


def _doc(path: Path_) -> str:
    examples = {
        "name": "give the run a name",
        "steps": "how many training steps",
        "env": "rockroll:NAME, LIBRARY:NAME, or module:Class of your own; `rockroll env ls` lists what there is",
    }
    return examples.get(str(path[-1]), "a value is needed here")
