"""FrozenLake as text: walk from the start to the goal over ice, and not into a hole.

In: a seed for the map and the ice; actions as text, the last of the words up, down, left, right in it. Out: the grid
as text, reward 1 at the goal. The rules, maps and step limits are Farama Gymnasium's FrozenLake-v1. Leaves talking
to a model to the rollout room.

Scores over 2,000 random 4×4 maps, 16 turns: a uniformly random policy 0.04 (slippery 0.04), `policy()` 1.00
(slippery 0.29; 0.74 on Farama's own 4×4 map with its 100 steps). `tests/env/test_frozen_lake.py` checks them.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

MAPS = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": (
        "SFFFFFFF",
        "FFFFFFFF",
        "FFFHFFFF",
        "FFFFFHFF",
        "FFFHFFFF",
        "FHHFFFHF",
        "FHFFHFHF",
        "FFFHFFFG",
    ),
}
"""Farama's two fixed maps. S start, F frozen, H hole, G goal."""

NAMES = string.ascii_lowercase
"""Of fields, where they are listed."""

MOVES = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}
"""(rows, columns) of each action, in Farama's order: each action's neighbours here are what the ice may turn it to."""

RULES = (
    "You are P on a frozen lake. Walk over the ice F to the goal G; a hole H ends the game. "
    "Answer with one word: up, down, left or right."
)


class FrozenLake:
    """GEM's `reset` and `step` over one lake.

    map: "random" (a new one for each seed, with a path), "4x4", "8x8", or rows of S, F, H, G.
    size: rows and columns of a random map. frozen: the chance that a field of a random map is ice, not a hole.
    slippery: a move goes where it was meant, or to either side, each with probability 1/3.
    max_steps: steps until `truncated`; Farama's 100 (up to 4×4) or 200.
    moves: what going left, down, right and up is called, in that order: for a model that has other words.
    rules: said before the first grid; "" for none. split: random maps of "train" and "eval" are disjoint.
    render: spaced (fields with a space between, as GEM's), compact (without: a field is a token for a model that
    spells letters), or list, for the smallest models: the fields are a, b, c, … row by row, and the lake is `#` its
    holes in capitals, `@` you, `.` the goals.
    """

    levels: ClassVar[dict[str, dict[str, Any]]] = {
        "2x2": {"size": 2},
        "4x4": {"size": 4},
        "8x8": {"size": 8},
        "4x4 slippery": {"size": 4, "slippery": True},
    }

    def __init__(
        self,
        map: str | Sequence[str] = "random",
        size: int = 4,
        frozen: float = 0.8,
        slippery: bool = False,
        max_steps: int | None = None,
        moves: Sequence[str] = tuple(MOVES),
        rules: str = RULES,
        split: Literal["train", "eval"] = "train",
        render: Literal["spaced", "compact", "list"] = "spaced",
    ) -> None:
        if render not in ("spaced", "compact", "list"):
            raise ValueError(f"render is spaced, compact or list; got {render!r}")
        self._render = render
        if isinstance(map, str) and map != "random" and map not in MAPS:
            raise ValueError(f"map is random, {', '.join(MAPS)} or a list of rows; got {map!r}")
        if not 2 <= size <= 32:
            raise ValueError(f"size is 2 to 32; got {size}")
        if not 0.3 <= frozen <= 1.0:
            raise ValueError(f"frozen is 0.3 to 1.0 (with fewer fields of ice a path is hard to find); got {frozen}")
        if len({move.lower() for move in moves}) != len(MOVES) or not all(moves):
            raise ValueError(f"moves are four different words, for {', '.join(MOVES)}; got {list(moves)}")
        self._fixed = None if map == "random" else check_map(MAPS[map] if isinstance(map, str) else tuple(map))
        self._size = len(self._fixed) if self._fixed else size
        if render == "list" and self._size**2 > len(NAMES):
            raise ValueError(f"render: list has letters for lakes of size 5 at most; got size {self._size}")
        self._frozen = frozen
        self._slippery = slippery
        self._max_steps = max_steps or (100 if self._size <= 4 else 200)
        left, down, right, up = self._moves = [move.lower() for move in moves]
        self._said = f"{up}, {down}, {left} or {right}"
        self._rules = rules.replace("up, down, left or right", self._said)
        self._words = re.compile(rf"(?<!\w)({'|'.join(re.escape(move) for move in self._moves)})(?!\w)", re.IGNORECASE)
        self._split = split
        self._random = random.Random(0)
        self._over = True
        self._best: dict[tuple[int, int], str] | None = None
        self.rows: tuple[str, ...] = self._fixed or ()
        """The lake of this episode."""
        self.place = (0, 0)
        """The player's (row, column)."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """A lake for this seed, the player at its start."""
        self._random = random.Random(seed)
        self.rows = self._fixed or random_map(self._random, self._size, self._frozen, self._split)
        self.place = next((r, row.index("S")) for r, row in enumerate(self.rows) if "S" in row)
        self._steps = 0
        self._over = False
        self._policy: dict[tuple[int, int], str] | None = None
        return f"{self._rules}\n{self.grid()}".lstrip("\n"), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One move. Text without a direction moves nothing, and takes a step."""
        if self._over:
            raise RuntimeError("this episode is over: call reset before step")
        said = self._words.findall(action)
        if said:
            meant = self._moves.index(said[-1].lower())
            turn = self._random.choice((-1, 0, 1)) if self._slippery else 0
            self.place = self._moved(self.place, list(MOVES.values())[(meant + turn) % 4])
        self._steps += 1
        field = self.rows[self.place[0]][self.place[1]]
        terminated = field in "GH"
        truncated = not terminated and self._steps >= self._max_steps
        self._over = terminated or truncated
        note = "" if said else f"Say {self._said}.\n"
        return note + self.grid(), float(field == "G"), terminated, truncated, {}

    def grid(self) -> str:
        """The lake as lines of letters, P where the player is."""
        if self._render == "list":
            return self._listed()
        lines = [list(row) for row in self.rows]
        lines[self.place[0]][self.place[1]] = "P"
        return "\n".join((" " if self._render == "spaced" else "").join(line) for line in lines)

    def sample_random_action(self) -> str:
        """One of the four moves."""
        return random.choice(self._moves)

    def expert_action(self) -> str | None:
        """The move of `policy` from here, as this lake's words call it."""
        if self._policy is None:
            self._policy = self.policy()
        return self._moves[list(MOVES).index(self._policy[self.place])]

    def policy(self) -> dict[tuple[int, int], str]:
        """The reference solver: for each place on the ice, the move that reaches the goal most often.

        By value iteration; of two sure ways it takes the shorter one.
        """
        values = {(r, c): float(f == "G") for r, row in enumerate(self.rows) for c, f in enumerate(row)}
        ways, turns = list(MOVES.values()), (-1, 0, 1) if self._slippery else (0,)
        ends = {
            place: [[self._moved(place, ways[(meant + turn) % 4]) for turn in turns] for meant in range(4)]
            for place in values
            if self.rows[place[0]][place[1]] in "SF"
        }

        def worth(ends_of_move: list[tuple[int, int]]) -> float:
            return 0.999 * sum(values[end] for end in ends_of_move) / len(turns)

        for _ in range(400 if self._slippery else len(values)):
            for place, moves in ends.items():
                values[place] = max(map(worth, moves))
        names = list(MOVES)
        return {place: names[max(range(4), key=lambda i: worth(moves[i]))] for place, moves in ends.items()}

    def _listed(self) -> str:
        fields = "".join(self.rows)
        holes, goals = ("".join(n for n, f in zip(NAMES, fields, strict=False) if f == kind) for kind in "HG")
        return f"#{holes.upper()}@{NAMES[self.place[0] * len(self.rows[0]) + self.place[1]]}.{goals}"

    def _moved(self, place: tuple[int, int], way: tuple[int, int]) -> tuple[int, int]:
        row = min(max(place[0] + way[0], 0), len(self.rows) - 1)
        column = min(max(place[1] + way[1], 0), len(self.rows[0]) - 1)
        return row, column


def random_map(draw: random.Random, size: int, frozen: float, split: str) -> tuple[str, ...]:
    """A map with a path. One in eight maps, by a hash of the whole map, is kept for evaluation."""
    while True:
        fields = ["F" if draw.random() < frozen else "H" for _ in range(size * size)]
        fields[0], fields[-1] = "S", "G"
        rows = tuple("".join(fields[i : i + size]) for i in range(0, size * size, size))
        held_out = hashlib.sha256("".join(rows).encode()).digest()[0] % 8 == 0
        # Of 2x2 maps there are too few to keep some apart.
        if has_path(rows) and (size < 3 or held_out == (split == "eval")):
            return rows


def has_path(rows: Sequence[str]) -> bool:
    """Can the goal be reached from the start without a hole?"""
    places = {(r, c): field for r, row in enumerate(rows) for c, field in enumerate(row)}
    todo = [place for place, field in places.items() if field == "S"]
    seen = set(todo)
    while todo:
        row, column = todo.pop()
        if places[row, column] == "G":
            return True
        near = {(row + r, column + c) for r, c in MOVES.values()}
        new = {place for place in near - seen if places.get(place, "H") != "H"}
        seen |= new
        todo += new
    return False


def check_map(rows: Sequence[str]) -> tuple[str, ...]:
    """The rows, if they are a lake; else ValueError with the rule."""
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"a map's rows have equal lengths; got {list(rows)}")
    fields = "".join(rows)
    if set(fields) - set("SFHG") or fields.count("S") != 1 or "G" not in fields:
        raise ValueError(f"a map has one S, at least one G, and else F and H; got {list(rows)}")
    if not has_path(rows):
        raise ValueError(f"a map has a path from S to G; this one has none: {list(rows)}")
    return tuple(rows)
