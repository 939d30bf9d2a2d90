"""`gymnasium:ID`: Farama Gymnasium's environments as text.

In: an id of Gymnasium's registry, as `CartPole-v1`, and options. Out: an Env: observations of spaces of text and of few
numbers written out, the model's text read as an action. Leaves rules, rewards and limits of steps to Gymnasium.

What has no fair form as text is refused when the environment is made: pictures, long vectors, actions in dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rockroll.env.library import imported, known_or_refused

LONGEST = 64
"""Numbers of one observation: more are no text that a model reads, but a picture."""
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_COLOURED = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m(.*?)\x1b\[0?m", re.DOTALL)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class GymnasiumEnv:
    """id: of Gymnasium's registry; `package:Id-v0` imports the package that registers it.

    actions: words for a Discrete space, in its order, as [left, right]; the last one in the answer counts. Without
    them it is the last whole number, and for a space of several numbers the last so many.
    observe: "value", the observation itself; "ansi", the environment's own drawing in text, above it: what is drawn in
    colour stands in brackets. options: of `gymnasium.make`.
    """

    def __init__(self, id: str, actions: Sequence[str] = (), observe: str = "value", **options: Any) -> None:
        gymnasium = imported("gymnasium", "gymnasium")
        if ":" not in id:
            known_or_refused("gymnasium", id, self.names())
        if observe not in ("value", "ansi"):
            raise ValueError(f"observe is value or ansi; got {observe!r}")
        if observe == "ansi":
            options["render_mode"] = "ansi"
        self._env = gymnasium.make(id, **options)
        self._drawn = observe == "ansi"
        try:
            if self._drawn and "ansi" not in self._env.metadata.get("render_modes", ()):
                raise ValueError(f"{id} does not draw itself as text: leave out observe: ansi")
            writable(self._env.observation_space, "observation")
            self._actions = Actions(self._env.action_space, tuple(actions))
        except ValueError:
            self._env.close()
            raise
        self._seen = ""
        self._over = True

    @staticmethod
    def names() -> list[str]:
        """Every id that is registered; a few need further packages to be made."""
        return sorted(imported("gymnasium", "gymnasium").registry)

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = self._env.reset(seed=seed)
        self._env.action_space.seed(seed)
        self._over = False
        self._seen = self._shown(observation)
        return f"{self._actions.rule}\n{self._seen}", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """An answer without an action takes no step: what was seen is said again, with the rule."""
        if self._over:
            raise RuntimeError("this episode is over: call reset before step")
        meant = self._actions.read(action)
        if meant is None:
            return f"{self._actions.rule}\n{self._seen}", 0.0, False, False, {}
        observation, reward, terminated, truncated, info = self._env.step(meant)
        self._over = bool(terminated or truncated)
        self._seen = self._shown(observation)
        return self._seen, float(reward), bool(terminated), bool(truncated), info

    def sample_random_action(self) -> str:
        """An action of the space, drawn at random, as text."""
        return self._actions.write(self._env.action_space.sample())

    def close(self) -> None:
        self._env.close()

    def _shown(self, observation: Any) -> str:
        value = written(self._env.observation_space, observation)
        if not self._drawn:
            return value
        drawn = _COLOURED.sub(lambda found: f"[{found[1]}]", str(self._env.render()))
        return f"{_ESCAPE.sub('', drawn).strip()}\n{value}"


class Actions:
    """How a model's text is read as an action of one space. ValueError for a space that has no form as text."""

    def __init__(self, space: Any, words: tuple[str, ...] = ()) -> None:
        spaces = imported("gymnasium.spaces", "gymnasium")
        self._space, self._words = space, words
        self._kind = type(space).__name__
        if words and (not isinstance(space, spaces.Discrete) or len(words) != space.n):
            raise ValueError(f"actions are words for each of a Discrete space's; got {list(words)} for {space}")
        if isinstance(space, spaces.Text):
            self.rule = f"Answer with a text of {space.min_length} to {space.max_length} characters."
        elif words:
            self._said = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
            self.rule = f"Answer with one of: {', '.join(words)}."
        elif isinstance(space, spaces.Discrete):
            self.rule = f"Answer with a whole number from {space.start} to {space.start + space.n - 1}."
        elif isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary) and _size(space) <= LONGEST:
            kind = "numbers" if isinstance(space, spaces.Box) else "whole numbers"
            self.rule = f"Answer with {_size(space)} {kind}{_bounds(space)}."
        else:
            raise ValueError(
                f"actions of {space} have no form as text; write an Env of your own around it (docs/tasks.md)"
            )

    def read(self, text: str) -> Any:
        """The action; None where the text has none that is in the space."""
        if self._kind == "Text":
            return text if self._space.contains(text) else None
        if self._words:
            said = self._said.findall(text)
            return [word.lower() for word in self._words].index(said[-1].lower()) if said else None
        numbers = _NUMBER.findall(text)
        if self._kind == "Discrete":
            if not numbers or not (number := float(numbers[-1])).is_integer():
                return None
            return int(number) if self._space.contains(int(number)) else None
        numpy = imported("numpy", "gymnasium")
        if len(numbers) < (size := _size(self._space)):
            return None
        values = [float(number) for number in numbers[-size:]]
        if self._kind != "Box" and not all(value.is_integer() for value in values):
            return None
        try:
            action = numpy.array(values).reshape(self._space.shape).astype(self._space.dtype)
        except OverflowError:
            return None
        if action.dtype.kind in "iu" and action.reshape(-1).tolist() != values:
            return None  # it does not fit the type: 257 would be another action, 1
        return action if self._space.contains(action) else None

    def write(self, action: Any) -> str:
        """The text that `read` reads as that action."""
        return self._words[int(action)] if self._words else written(self._space, action)


def writable(space: Any, what: str) -> None:
    """Raises ValueError for a space whose values `written` cannot write."""
    spaces = imported("gymnasium.spaces", "gymnasium")
    if isinstance(space, spaces.Dict):
        for name, part in space.spaces.items():
            writable(part, f"{what} {name}")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            writable(part, f"{what} {index}")
    elif isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        if (size := _size(space)) > LONGEST:
            raise ValueError(
                f"the {what} has {size} numbers, and up to {LONGEST} are written as text; write an Env of your own "
                "that says in words what is seen (docs/tasks.md)"
            )
    elif not isinstance(space, spaces.Discrete | spaces.Text):
        raise ValueError(f"the {what} is a {type(space).__name__}, which has no form as text")


def written(space: Any, value: Any) -> str:
    """A value of the space as text: numbers with at most four digits behind the point, one line a named part."""
    kind = type(space).__name__
    if kind == "Text":
        return str(value)
    if kind == "Discrete":
        return str(int(value))
    if kind == "Dict":
        return "\n".join(f"{name}: {written(part, value[name])}" for name, part in space.spaces.items())
    if kind == "Tuple":
        return ", ".join(written(part, value[index]) for index, part in enumerate(space.spaces))
    rows = value.reshape(-1, value.shape[-1]) if value.ndim > 1 else [value.reshape(-1)]
    return "\n".join(" ".join(f"{number:.4f}".rstrip("0").rstrip(".") or "0" for number in row) for row in rows)


def _size(space: Any) -> int:
    size = 1
    for length in space.shape:
        size *= length
    return size


def _bounds(space: Any) -> str:
    kind = type(space).__name__
    if kind == "MultiBinary":
        return ", each 0 or 1"
    if kind == "MultiDiscrete":
        low = space.start.reshape(-1)
        tops = low + space.nvec.reshape(-1) - 1
        return f", from {' '.join(map(str, low))} to {' '.join(map(str, tops))}"
    return f", from {written(space, space.low)} to {written(space, space.high)}".replace("\n", " ")
