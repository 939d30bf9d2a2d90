"""The libraries whose environments have names here: imported when one of theirs is asked for, and not before.

In: the prefix of a name, as `gymnasium` of `gymnasium:CartPole-v1`. Out: the adapter's class; the library, or a
UsageError that says what to install. Leaves what an adapter does to its own file.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rockroll.errors import EnvError, UsageError


@dataclass(frozen=True)
class Library:
    """Where the environments with one prefix come from."""

    adapter: str
    """module:Class here. Its constructor takes the name behind the prefix, then options; `names()` lists the names."""
    module: str
    """What is imported."""
    package: str
    """What `pip install` calls it."""
    example: str
    says: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


LIBRARIES = {
    "gymnasium": Library(
        "rockroll.env.gymnasium_env:GymnasiumEnv",
        "gymnasium",
        "gymnasium",
        "gymnasium:CartPole-v1",
        "Farama Gymnasium: observations as text, actions read from text",
    ),
    "gem": Library(
        "rockroll.env.gem_env:GemEnv", "gem", "gem-llm", "gem:game:GuessTheNumber-v0-easy", "GEM: games of text"
    ),
    "reasoning-gym": Library(
        "rockroll.env.reasoning_gym_env:ReasoningGymEnv",
        "reasoning_gym",
        "reasoning-gym",
        "reasoning-gym:chain_sum",
        "Reasoning Gym: one question, one answer, its own scorer",
    ),
    "textarena": Library(
        "rockroll.env.textarena_env:TextArenaEnv",
        "textarena",
        "textarena",
        "textarena:GuessTheNumber-v0",
        "TextArena: games for one, or against a fixed opponent",
    ),
}
"""By prefix. A module of one's own with such a name is not reached by module:Class: name it by its package."""


def imported(module: str, prefix: str) -> Any:
    """That module of a library. Raises UsageError where the library is not installed."""
    library = LIBRARIES[prefix]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library.module:
            raise UsageError(
                f"{prefix}: its library needs the Python package {error.name}: pip install {error.name}"
            ) from error
        raise UsageError(
            f"{prefix}: environments need the package {library.package}: pip install {library.package}"
        ) from None
    except Exception as error:
        raise EnvError(f"{prefix}: importing {module} failed: {type(error).__name__}: {error}") from error


def known_or_refused(prefix: str, id: str, names: Iterable[str]) -> None:
    """Raises UsageError, with the nearest ones, for an id that is not among the names."""
    names = list(names)
    if id not in names:
        near = difflib.get_close_matches(id, names, n=3, cutoff=0.4)
        raise UsageError(
            f"{prefix} has no environment {id!r}{'; did you mean ' + ' or '.join(near) + '?' if near else ''} "
            f"(rockroll env ls {prefix} lists all {len(names)})"
        )
