"""Sokoban as text: push every box onto a goal; a box can be pushed, one at a time, and never pulled.

In: a seed for the room; actions as text, the last of the words up, down, left, right in it. Out: the room as text;
reward 1 when every box stands on a goal; at the limit of steps, the share of boxes that do. The rules, the levels easy
and hard (size, boxes, limit of steps) and the rewards are those of GEM's Sokoban, but for text without a direction:
there it ends the game with -0.1, here it moves nothing and takes a step. Leaves talking to a model to the rollout room.

Rooms are made backwards, by pulling boxes off their goals, and so each can be solved within its limit of steps.

Scores (and share of rooms solved) over 300 rooms: a uniformly random policy tiny 0.32 (0.32), easy 0.21 (0.04), hard
0.14 (0.00); `solution()` 1.00 (1.00) on every level.
`tests/env/test_sokoban.py` checks them.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from rockroll.env.frozen_lake import MOVES, NAMES

Render = Literal["spaced", "compact", "inner", "list", "near"]
Lost = Literal["goes_on", "ends"]
Pays = Literal["share", "solved"]


@dataclass(frozen=True)
class Level:
    """size: rows and columns, with the walls around. steps: then it is `truncated`."""

    size: int
    boxes: int
    steps: int


LEVELS = {"tiny": Level(5, 1, 10), "easy": Level(6, 2, 20), "hard": Level(8, 4, 50)}
"""easy and hard are GEM's."""

RULES = (
    "You are P in a room of walls # and floor _. Push each box X onto a goal O; a box on a goal is *, you on a goal "
    "are +. You cannot pull. Answer with one word: up, down, left or right."
)
WALLS = 0.2
"""Share of the fields within the outer walls that are drawn as walls."""
DRAWN = 20_000
"""Rooms that are drawn for one that is fit; one in three to thirty is, by level."""
SEARCHED = 200_000
"""Positions that `solution` looks at before it gives up."""


@dataclass(frozen=True)
class Room:
    """One puzzle. Fields are numbered row by row: row * size + column."""

    size: int
    walls: frozenset[int]
    goals: frozenset[int]
    boxes: frozenset[int]
    player: int

    def text(self, boxes: frozenset[int] | set[int], player: int, render: Render = "spaced") -> str:
        """The room with these boxes and that player."""
        if render == "list":
            return self._listed(boxes, player)
        if render == "near":
            return f"{self._listed(boxes, player)}={self._beside(boxes, player)}"
        fields = ["_"] * (self.size * self.size)
        for at in self.walls:
            fields[at] = "#"
        for at in self.goals:
            fields[at] = "O"
        for at in boxes:
            fields[at] = "*" if at in self.goals else "X"
        fields[player] = "+" if player in self.goals else "P"
        rows = [fields[i : i + self.size] for i in range(0, len(fields), self.size)]
        if render == "inner":
            rows = [row[1:-1] for row in rows[1:-1]]
        return "\n".join((" " if render == "spaced" else "").join(row) for row in rows)

    def _listed(self, boxes: frozenset[int] | set[int], player: int) -> str:
        inner = [i for i in range(self.size * self.size) if 0 < i // self.size < self.size - 1]
        names = dict(zip([i for i in inner if 0 < i % self.size < self.size - 1], NAMES, strict=False))
        walls, players, pushed, goals = (
            "".join(names[at] for at in names if at in fields) for fields in (self.walls, {player}, boxes, self.goals)
        )
        return f"#{walls.upper()}@{players}${pushed}.{goals}"

    def _beside(self, boxes: frozenset[int] | set[int], player: int) -> str:
        """What going left, down, right and up would meet: _ nothing, X a box that moves, # what does not."""
        blocked = self.walls | boxes
        return "".join(
            "_" if (to := player + way) not in blocked else "X" if to in boxes and to + way not in blocked else "#"
            for way in _ways(self.size).values()
        )


class Sokoban:
    """GEM's `reset` and `step` over one room.

    level: tiny (5×5, 1 box, 10 steps), easy (6×6, 2 boxes, 20 steps) or hard (8×8, 4 boxes, 50 steps).
    size, boxes, max_steps: in place of the level's. moves: what going left, down, right and up is called, in that
    order: for a model that has other words. rules: said before the first room; "" for none.
    render: spaced (fields with a space between, as GEM's), compact (without: a field is a token for a model that spells
    letters), inner (compact, without the walls around), or list, for the smallest models: the fields within the outer
    walls are a, b, c, … row by row, and the room is `#` its walls in capitals, `@` you, `$` the boxes, `.` the goals.
    near is list, and after a `=` what stands to your left, below, to your right and above: `_` nothing, `X` a box that
    can be pushed that way, `#` what is in the way.
    lost: what comes of a box on a field from which no pushes bring it home, such as a corner. goes_on, as GEM's, or
    ends: the game is over, and earns nothing. Which rooms are solved is the same by both; ends saves the steps that
    could earn no more than a part, and tells which push it was.
    pays: what a game earns that its limit of steps ends: the share of boxes that are home, as GEM's, or 0 for solved.
    split: the rooms of "train" and "eval" are disjoint.
    """

    levels: ClassVar[dict[str, dict[str, Any]]] = {name: {"level": name} for name in LEVELS}

    def __init__(
        self,
        level: str = "easy",
        size: int | None = None,
        boxes: int | None = None,
        max_steps: int | None = None,
        moves: Sequence[str] = tuple(MOVES),
        rules: str = RULES,
        split: Literal["train", "eval"] = "train",
        render: Render = "spaced",
        lost: Lost = "goes_on",
        pays: Pays = "share",
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level is {', '.join(LEVELS)}; got {level!r}")
        base = LEVELS[level]
        self._level = Level(size or base.size, boxes or base.boxes, max_steps or base.steps)
        if not 5 <= self._level.size <= 16:
            raise ValueError(f"size is 5 to 16, with the walls around; got {self._level.size}")
        if render not in get_args(Render):
            raise ValueError(f"render is {', '.join(get_args(Render))}; got {render!r}")
        if render in ("list", "near") and (self._level.size - 2) ** 2 > len(NAMES):
            raise ValueError(f"render: {render} has letters for rooms of size 7 at most; got size {self._level.size}")
        for name, value, known in (("lost", lost, get_args(Lost)), ("pays", pays, get_args(Pays))):
            if value not in known:
                raise ValueError(f"{name} is {' or '.join(known)}; got {value!r}")
        self._render: Render = render
        self._ends, self._shares = lost == "ends", pays == "share"
        if not 1 <= self._level.boxes <= (most := (self._level.size - 2) ** 2 // 6):
            raise ValueError(f"boxes are 1 to {most} in a room of size {self._level.size}; got {self._level.boxes}")
        if self._level.steps < 4 * self._level.boxes:
            raise ValueError(f"max_steps is at least 4 for each box; got {self._level.steps}")
        if len({move.lower() for move in moves}) != len(MOVES) or not all(moves):
            raise ValueError(f"moves are four different words, for {', '.join(MOVES)}; got {list(moves)}")
        left, down, right, up = self._moves = [move.lower() for move in moves]
        self._said = f"{up}, {down}, {left} or {right}"
        self._words = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, self._moves))})(?!\w)", re.IGNORECASE)
        self._rules, self._split = rules.replace("up, down, left or right", self._said), split
        self._ways = dict(zip(self._moves, _ways(self._level.size).values(), strict=True))
        self._over = True

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """A room for this seed."""
        self.room = random_room(random.Random(seed), self._level, self._split)
        self.boxes, self.player = set(self.room.boxes), self.room.player
        self._hopeful = _pushes_home(self.room, self._ways).keys() if self._ends else set[int]()
        self._steps, self._over = 0, False
        self._ahead: list[str] = []
        return f"{self._rules}\n{self.grid()}".lstrip("\n"), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One move, or push. What is in the way stays where it is; that takes a step, as text without a direction."""
        if self._over:
            raise RuntimeError("this episode is over: call reset before step")
        said = self._words.findall(action)
        if said:
            move = said[-1].lower()
            # The rest of a shortest way is one from where its first move leads; any other move makes it void.
            self._ahead = self._ahead[1:] if self._ahead[:1] == [move] else []
            self._go(self._ways[move])
        self._steps += 1
        home = len(self.boxes & self.room.goals)
        solved, lost = home == len(self.boxes), self._ends and not self.boxes <= self._hopeful
        terminated = solved or lost
        truncated = not terminated and self._steps >= self._level.steps
        self._over = terminated or truncated
        reward = 1.0 if solved else home / len(self.boxes) if truncated and self._shares else 0.0
        note = "" if said else f"Say {self._said}.\n"
        return note + self.grid(), reward, terminated, truncated, {}

    def grid(self) -> str:
        """The room as lines of letters."""
        return self.room.text(self.boxes, self.player, self._render)

    def sample_random_action(self) -> str:
        """One of the four moves."""
        return random.choice(self._moves)

    def solution(self) -> list[str] | None:
        """The reference solver: a shortest way from here, as words; None where there is none any more."""
        found = solve(self.room, frozenset(self.boxes), self.player)
        return found and [self._moves[list(MOVES).index(word)] for word in found]

    def expert_action(self) -> str | None:
        """The first move of `solution`, which is looked for again only where another move was made."""
        self._ahead = self._ahead or self.solution() or []
        return self._ahead[0] if self._ahead else None

    def _go(self, way: int) -> None:
        to = self.player + way
        if to in self.room.walls:
            return
        if to in self.boxes:
            beyond = to + way
            if beyond in self.room.walls or beyond in self.boxes:
                return
            self.boxes.remove(to)
            self.boxes.add(beyond)
        self.player = to


def random_room(draw: random.Random, level: Level, split: str) -> Room:
    """A room that can be solved within the level's steps, with no box at home. One in eight rooms, by a hash of the
    whole room, is kept for evaluation."""
    for _ in range(DRAWN):
        room = _pulled(draw, level)
        if room is None:
            continue
        held_out = hashlib.sha256(room.text(room.boxes, room.player).encode()).digest()[0] % 8 == 0
        if held_out == (split == "eval"):
            return room
    raise ValueError(
        f"no room of size {level.size} with {level.boxes} boxes that {level.steps} steps solve came of {DRAWN} tries: "
        "ask for fewer boxes, or for more max_steps"
    )


def solve(room: Room, boxes: frozenset[int], player: int) -> list[str] | None:
    """A shortest sequence of words that brings all boxes home; None where there is none.

    A* over pushes, a push costing its walk: the bound is each box's pushes to its nearest goal, which never overrates.
    """
    ways = _ways(room.size)
    home = _pushes_home(room, ways)
    if not boxes <= home.keys():
        return None
    found: dict[tuple[frozenset[int], int], tuple[tuple[frozenset[int], int] | None, list[str]]] = {}
    first = (boxes, player)
    best = {first: 0}
    found[first] = (None, [])
    todo = [(sum(home[box] for box in boxes), 0, 0, first)]
    order = 0
    done: set[tuple[frozenset[int], int]] = set()
    while todo and len(done) < SEARCHED:
        _, _, cost, state = heapq.heappop(todo)
        if state in done:
            continue
        done.add(state)
        here, at = state
        if here <= room.goals:
            moves: list[str] = []
            step: tuple[frozenset[int], int] | None = state
            while step is not None:
                step, words = found[step][0], found[step][1]
                moves = words + moves
            return moves
        walks = _walks(room.walls | here, at, ways)
        for box in here:
            for word, way in ways.items():
                behind, to = box - way, box + way
                if behind not in walks or to not in home or to in here:
                    continue
                after = ((here - {box}) | {to}, box)
                paid = cost + len(walks[behind]) + 1
                if paid < best.get(after, 1 << 30):
                    best[after] = paid
                    found[after] = (state, [*walks[behind], word])
                    order += 1
                    heapq.heappush(todo, (paid + sum(home[each] for each in after[0]), order, paid, after))
    return None


def _ways(size: int) -> dict[str, int]:
    """By word, what a move adds to a field's number."""
    return {word: row * size + column for word, (row, column) in MOVES.items()}


def _pulled(draw: random.Random, level: Level) -> Room | None:
    """A room made backwards; None where it came out too easy, too long, or with a box at home."""
    size, ways = level.size, _ways(level.size)
    fields = range(size * size)
    inner = [i for i in fields if 0 < i // size < size - 1 and 0 < i % size < size - 1]
    floor = {i for i in inner if draw.random() >= WALLS}
    if not floor:
        return None
    walls = frozenset(set(fields) - floor)
    reached = set(_walks(walls, draw.choice(sorted(floor)), ways))
    if len(reached) < 2 * level.boxes + 3:
        return None
    walls = frozenset(set(fields) - reached)
    goals = frozenset(draw.sample(sorted(reached), level.boxes))
    boxes = set(goals)
    player = draw.choice(sorted(reached - boxes))
    spent = 0
    for _ in range(draw.randint(2, 6) * level.boxes):
        walks = _walks(walls | boxes, player, ways)
        pulls = [
            (box, way)
            for box in sorted(boxes)
            for way in ways.values()
            # The player stands beside the box, and the field behind the player is free.
            if box + way in walks and box + 2 * way not in walls and box + 2 * way not in boxes
        ]
        if not pulls:
            break
        # A box that is still at home is pulled first: else most of the rooms would have one there.
        box, way = draw.choice([pull for pull in pulls if pull[0] in goals] or pulls)
        cost = len(walks[box + way]) + 1
        if spent + cost > level.steps:
            break
        boxes = (boxes - {box}) | {box + way}
        player, spent = box + 2 * way, spent + cost
    if boxes & goals:
        return None
    walks = _walks(walls | boxes, player, ways)
    near = [at for at in sorted(walks) if spent + len(walks[at]) <= level.steps]
    return Room(size, walls, goals, frozenset(boxes), draw.choice(near))


def _walks(blocked: frozenset[int] | set[int], start: int, ways: dict[str, int]) -> dict[int, list[str]]:
    """By field that can be walked to, a shortest way there."""
    walks: dict[int, list[str]] = {start: []}
    todo = [start]
    for at in todo:
        for word, way in ways.items():
            if (to := at + way) not in walks and to not in blocked:
                walks[to] = [*walks[at], word]
                todo.append(to)
    return walks


def _pushes_home(room: Room, ways: dict[str, int]) -> dict[int, int]:
    """By field from which a box alone in the room can be pushed home, how many pushes that takes."""
    away = dict.fromkeys(room.goals, 0)
    todo = list(room.goals)
    for at in todo:
        for way in ways.values():
            before, behind = at - way, at - 2 * way
            if before not in away and before not in room.walls and behind not in room.walls:
                away[before] = away[at] + 1
                todo.append(before)
    return away
