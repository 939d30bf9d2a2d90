"""`gem:ID`: the environments of GEM (gem-llm on PyPI), as rockroll plays them.

In: an id of GEM's registry, as `game:Sokoban-v0-easy`, and the constructor's options. Out: an Env whose observation has
GEM's `prefix` and `suffix` around it, as GEM's own observation wrapper shows it. Leaves rules and rewards to GEM.

GEM seeds and draws from the process's generators, so that two of its environments at once would disturb one another;
each has a state of its own here (own_random.py).
"""

from __future__ import annotations

import logging
from typing import Any

from rockroll.env.library import imported, known_or_refused
from rockroll.env.own_random import OwnRandom


class GemEnv:
    """id: of GEM's registry. options: of that environment's constructor."""

    def __init__(self, id: str, **options: Any) -> None:
        known_or_refused("gem", id, self.names())
        self._random = OwnRandom()
        with self._random.here():
            self._env = _gem().make(id, **options)
        self._over = True

    @staticmethod
    def names() -> list[str]:
        """Every id that can be made."""
        _gem()
        return sorted(imported("gem.envs.registration", "gem").ENV_REGISTRY)

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        with self._random.here():
            observation, info = self._env.reset(seed=seed)
        self._over = False
        return _whole(observation, info), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise RuntimeError("this episode is over: call reset before step")
        with self._random.here():
            observation, reward, terminated, truncated, info = self._env.step(action)
        self._over = bool(terminated or truncated)
        return _whole(observation, info), float(reward), bool(terminated), bool(truncated), info

    def sample_random_action(self) -> str:
        """What GEM takes for an action drawn at random."""
        with self._random.here():
            return self._env.sample_random_action()


def _gem() -> Any:
    """The library. It sets up the process's log when it is imported, which is not its to set up here."""
    before = logging.root.handlers[:], logging.root.level
    gem = imported("gem", "gem")
    logging.root.handlers[:], logging.root.level = before[0], before[1]
    return gem


def _whole(observation: Any, info: dict[str, Any]) -> str:
    return "\n".join(str(part) for part in (info.get("prefix"), observation, info.get("suffix")) if part)
