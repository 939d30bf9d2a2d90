"""The Python files that an environment is made of, found without importing any of them.

In: a task's name, as a recipe says it. Out: its module, its class, and the files that belong to it. Leaves taking them
somewhere else, and running them there, to boxed.py.

Belonging to it are the file of its module and whatever that imports from the same places: the current folder and what
is on Python's path, but for Python's own modules and installed packages. Those are for the other side to have. What is
imported for type checkers alone is left out, and so is a module whose name is made up while it runs.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rockroll.env.library import LIBRARIES
from rockroll.env.registry import BUILT_IN, find
from rockroll.errors import UsageError

ALWAYS = ("rockroll.env.api",)
"""What an action is made of, also where the environment does not ask for it."""


@dataclass(frozen=True)
class Source:
    """An environment's code, ready to be taken elsewhere."""

    name: str
    """As the recipe says it."""
    module: str
    cls: str
    given: tuple[str, ...]
    """What its constructor takes before the options: a library's own name for the environment."""
    files: Mapping[str, str]
    """Texts by path, relative to a folder that is to be on Python's path. Without `module` where no such file is found
    here: then the other side has it installed."""


def source(name: str) -> Source:
    """The files of that task. Raises UsageError for a name that cannot be one, and for a file that is not Python."""
    prefix, _, rest = name.partition(":")
    given: tuple[str, ...] = ()
    if prefix in LIBRARIES and rest:
        place, given = LIBRARIES[prefix].adapter, (rest,)
    else:
        place = BUILT_IN.get(name, name)
    module, colon, cls = place.partition(":")
    if not (module and colon and cls) or (module == "rockroll" and name not in BUILT_IN):
        find(name)  # says which names there are
    return Source(name, module, cls, given, files(module, *ALWAYS))


def files(*modules: str) -> dict[str, str]:
    """The texts of these modules and of all that they import, by path; none for those that are installed."""
    roots = list(_roots())
    found: dict[str, str] = {}
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        if parent := module.rpartition(".")[0]:
            todo.append(parent)  # its __init__.py runs first
        for root in [_OURS] if module.partition(".")[0] == "rockroll" else roots:
            path = next((p for p in _places(root, module) if p.is_file()), None)
            if path is not None:
                text = found[str(path.relative_to(root))] = _read(path)
                todo += _imports(text, path, module, path.name == "__init__.py")
                break
    return found


_OURS = Path(__file__).parents[2]


def _roots() -> Iterator[Path]:
    """Where a user's own modules are: what Python looks through, without itself and what was installed."""
    own = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")]
    for place in dict.fromkeys([*(Path(entry).resolve() for entry in sys.path), Path.cwd()]):
        installed = {"site-packages", "dist-packages"} & set(place.parts)
        if place.is_dir() and not installed and not any(place == each or each in place.parents for each in own):
            yield place


def _places(root: Path, module: str) -> tuple[Path, Path]:
    at = root.joinpath(*module.split("."))
    return at / "__init__.py", at.with_name(f"{at.name}.py")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path} cannot be taken into a sandbox, for it cannot be read as UTF-8: {error}") from None


def _imports(text: str, path: Path, module: str, is_package: bool) -> Iterator[str]:
    """Every module that the file may import, by its whole name; a few are names in modules, which are no files."""
    try:
        tree = ast.parse(text, str(path))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path} is not Python: {error}") from None
    package = module if is_package else module.rpartition(".")[0]
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.If) and _for_types(node.test):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def _for_types(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))
