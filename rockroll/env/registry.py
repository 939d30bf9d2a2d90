"""Tasks by name.

In: "rockroll:frozen_lake", "gymnasium:CartPole-v1" or another library's, or "module:Class", and the constructor's
keyword options. Out: an object of that class. Leaves running it to the rollout room, and the libraries to library.py.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from rockroll.env.library import LIBRARIES
from rockroll.errors import EnvError, RockrollError, UsageError

BUILT_IN = {
    "rockroll:arithmetic": "rockroll.env.arithmetic:Arithmetic",
    "rockroll:code": "rockroll.env.code:CodeTask",
    "rockroll:frozen_lake": "rockroll.env.frozen_lake:FrozenLake",
    "rockroll:handover": "rockroll.env.handover:HandoverTask",
    "rockroll:math": "rockroll.env.maths:Math",
    "rockroll:shell": "rockroll.env.shell:ShellTask",
    "rockroll:shell_quiz": "rockroll.env.shell_quiz:ShellQuiz",
    "rockroll:sokoban": "rockroll.env.sokoban:Sokoban",
    "rockroll:terminal": "rockroll.env.terminal.tasks:TerminalTasks",
}
"""Names of rockroll's own tasks, and where they are."""


def make(name: str, **options: Any) -> Any:
    """A new environment or sandbox task. Raises UsageError for a name or an option that it does not know."""
    cls = find(name)
    prefix, _, rest = name.partition(":")
    given = (rest,) if prefix in LIBRARIES else ()  # the library's own name for it
    try:
        inspect.signature(cls).bind(*given, **options)
    except TypeError as error:
        taken = ", ".join(inspect.signature(cls).parameters) or "none"
        raise UsageError(f"{name} takes the options {taken}; got {', '.join(options) or 'none'}: {error}") from None
    try:
        return cls(*given, **options)
    except RockrollError:
        raise
    except ValueError as error:
        raise UsageError(f"{name} refuses its options: {error}") from error
    except TypeError as error:
        if given and "unexpected keyword" in str(error):
            raise UsageError(f"{name} refuses its options: {error}") from error
        raise EnvError(f"{name} could not be made: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise EnvError(f"{name} could not be made: {type(error).__name__}: {error}") from error


def find(name: str) -> type:
    """The class of that name, imported; for a library's environment, its adapter. `module:Class` is looked for in the
    current folder too."""
    prefix, _, rest = name.partition(":")
    place = LIBRARIES[prefix].adapter if prefix in LIBRARIES and rest else BUILT_IN.get(name, name)
    module_name, colon, class_name = place.partition(":")
    if not (module_name and colon and class_name) or (module_name == "rockroll" and name not in BUILT_IN):
        raise UsageError(
            f"a task is one of {', '.join(sorted(BUILT_IN))}, "
            f"a library's ({', '.join(library.example for library in LIBRARIES.values())}) or module:Class; "
            f"got {name!r}{_nearest(name, BUILT_IN)}"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name}: there is no Python module {error.name!r}; run where it is, or install the package that has it"
        ) from None
    except Exception as error:
        raise EnvError(f"{name}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if found is None:
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        raise UsageError(f"{module_name} has no class {class_name!r}{_nearest(class_name, classes)}")
    return found


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
