"""Sokoban keeps GEM's rules, its rooms can be solved within their limits, and its splits are apart."""

from __future__ import annotations

import random
from typing import Any

import pytest

import rockroll
from rockroll.env.api import Env
from rockroll.env.sokoban import LEVELS, Level, Room, Sokoban, random_room, solve
from rockroll.errors import UsageError


def room_of(*rows: str) -> Room:
    fields = "".join(rows)

    def at(*letters: str) -> frozenset[int]:
        return frozenset(i for i, field in enumerate(fields) if field in letters)

    return Room(len(rows), at("#"), at("O", "*", "+"), at("X", "*"), min(at("P", "+")))


def playing(*rows: str, steps: int = 20, **options: Any) -> Sokoban:
    room = room_of(*rows)
    game = Sokoban(size=room.size, max_steps=steps, rules="", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rockroll.env.sokoban.random_room", lambda *_: room)
        game.reset(0)
    return game


LANE = ("######", "#P_XO#", "#____#", "#____#", "#____#", "######")


def test_it_is_made_by_name_and_shows_its_rules_and_its_room() -> None:
    game = rockroll.make("rockroll:sokoban", level="tiny")
    assert isinstance(game, Env)
    rules, *rows = game.reset(seed=7)[0].splitlines()
    assert "Push each box" in rules and len(rows) == 5 and rows[0] == "# # # # #"


def test_a_box_is_pushed_home_and_that_earns_one() -> None:
    game = playing(*LANE)
    assert game.step("right")[1:4] == (0.0, False, False)
    observation, reward, terminated, truncated, _ = game.step("I push \\boxed{right}")
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert observation.splitlines()[1] == "# _ _ P * #"
    with pytest.raises(RuntimeError, match="call reset"):
        game.step("up")


@pytest.mark.parametrize(
    ("rows", "moves", "after"),
    [
        (LANE, ["up"], "# P _ X O #"),
        (LANE, ["left"], "# P _ X O #"),
        (("######", "#PXXO#", "#____#", "#____#", "#__O_#", "######"), ["right"], "# P X X O #"),
        (("######", "#_PX##", "#O___#", "#____#", "#____#", "######"), ["right"], "# _ P X # #"),
        (("######", "#_XP_#", "#O___#", "#____#", "#____#", "######"), ["right"], "# _ X _ P #"),
        (("######", "#P*__#", "#O___#", "#X___#", "#____#", "######"), ["right"], "# _ + X _ #"),
    ],
    ids=[
        "a wall above",
        "a wall beside",
        "two boxes in a row",
        "a box at a wall",
        "never pulled",
        "off its goal again",
    ],
)
def test_what_cannot_be_moved_stays(rows: tuple[str, ...], moves: list[str], after: str) -> None:
    game = playing(*rows)
    for move in moves:
        game.step(move)
    assert game.grid().splitlines()[1] == after


def test_text_without_a_direction_takes_a_step_and_says_what_to_say() -> None:
    game = playing(*LANE)
    observation, reward, terminated, _, _ = game.step("hello")
    assert observation.startswith("Say up, down, left or right.") and (reward, terminated) == (0.0, False)


def test_the_moves_may_be_called_otherwise() -> None:
    game = Sokoban("tiny", moves=["links", "runter", "rechts", "rauf"])
    for seed in range(20):
        assert "Answer with one word: rauf, runter, links or rechts." in game.reset(seed)[0]
        assert game.step("hello")[0].startswith("Say rauf")
        moves = game.solution()
        assert moves and {*moves} <= {"links", "runter", "rechts", "rauf"}
        assert len(moves) == 10 or [game.step(move) for move in moves][-1][1] == 1.0


def test_at_the_limit_it_earns_the_share_of_boxes_at_home() -> None:
    game = playing("######", "#P_XO#", "#____#", "#__X_#", "#__O_#", "######", steps=8)
    ends = [game.step(move) for move in ["right", "right"] + ["up"] * 6]
    assert [end[3] for end in ends] == [False] * 7 + [True]
    assert ends[-1][1:3] == (0.5, False)


@pytest.mark.parametrize(("level", "rooms"), [("tiny", 100), ("easy", 100), ("hard", 12)])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_room_is_solved_by_the_reference_within_its_limit(level: str, rooms: int, split: str) -> None:
    game = Sokoban(level, split=split)  # type: ignore[arg-type]
    for seed in range(rooms):
        game.reset(seed)
        moves = game.solution()
        assert moves and len(moves) <= LEVELS[level].steps
        assert not game.boxes & game.room.goals
        assert [game.step(move) for move in moves][-1][1:3] == (1.0, True)


def test_the_reference_finds_a_shortest_way_and_knows_when_there_is_none() -> None:
    room = room_of(*LANE)
    assert solve(room, room.boxes, room.player) == ["right", "right"]
    stuck = room_of("######", "#X__O#", "#_P__#", "#____#", "#____#", "######")
    assert solve(stuck, stuck.boxes, stuck.player) is None


def test_a_seed_names_a_room_and_rooms_of_evaluation_never_occur_in_training() -> None:
    rooms = {}
    for split in ("train", "eval"):
        game = Sokoban("tiny", split=split)  # type: ignore[arg-type]
        rooms[split] = [game.reset(seed)[0] for seed in range(400)]
        assert rooms[split] == [game.reset(seed)[0] for seed in range(400)]
    assert not set(rooms["train"]) & set(rooms["eval"])
    assert len(set(rooms["train"])) > 200


def test_the_scores_in_the_docstring() -> None:
    draw = random.Random(1)
    for level, earned, solved in (("tiny", 0.32, 0.32), ("easy", 0.21, 0.04), ("hard", 0.14, 0.0)):
        game, total, won = Sokoban(level), 0.0, 0
        for seed in range(300):
            game.reset(seed)
            over = False
            while not over:
                _, reward, terminated, truncated, _ = game.step(draw.choice(["up", "down", "left", "right"]))
                total, won, over = total + reward, won + terminated, terminated or truncated
        assert abs(total / 300 - earned) < 0.06 and abs(won / 300 - solved) < 0.06


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"level": "esay"}, "level is tiny, easy, hard"),
        ({"size": 4}, "size is 5 to 16"),
        ({"boxes": 3}, "boxes are 1 to 2 in a room of size 6"),
        ({"moves": ["a", "b"]}, "moves are four different words"),
        ({"max_steps": 3}, "at least 4 for each box"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rockroll.make("rockroll:sokoban", **options)


def test_a_room_that_cannot_be_had_is_told_and_not_sought_for_ever() -> None:
    with pytest.raises(ValueError, match="ask for fewer boxes"):
        random_room(random.Random(0), Level(5, 4, 16), "train")


def test_a_room_is_shown_in_fewer_tokens_where_that_is_asked_for() -> None:
    shown = {}
    for render in ("spaced", "compact", "inner", "list", "near"):
        game = Sokoban(level="easy", rules="", render=render)  # type: ignore[arg-type]
        shown[render] = game.reset(seed=4)[0]
        assert game.step(game.expert_action() or "")[0] == game.grid() != shown[render]
    rows = shown["spaced"].replace(" ", "").splitlines()
    assert shown["compact"].splitlines() == rows
    assert shown["inner"].splitlines() == [row[1:-1] for row in rows[1:-1]]
    fields = "".join(shown["inner"].split())
    walls, player, boxes, goals = ("".join(n for n, f in zip("abcdefghijklmnop", fields, strict=True) if f in kinds)
                                   for kinds in ("#", "P+", "X*", "O*+"))  # fmt: skip
    assert shown["list"] == f"#{walls.upper()}@{player}${boxes}.{goals}"


def test_a_rendering_that_is_unknown_or_too_small_for_the_room_says_so() -> None:
    with pytest.raises(UsageError, match="render is spaced, compact, inner, list, near; got 'flat'"):
        rockroll.make("rockroll:sokoban", render="flat")
    with pytest.raises(UsageError, match="rooms of size 7 at most; got size 8"):
        rockroll.make("rockroll:sokoban", level="hard", render="list")


def test_its_expert_solves_it_also_after_moves_of_somebody_else() -> None:
    game = playing(*LANE)
    assert game.expert_action() == "right"
    game.step("down")
    ways = []
    while not game._over:
        ways.append(game.expert_action())
        game.step(ways[-1] or "")
    assert len(ways) == 3 and game.boxes == game.room.goals


def test_its_expert_knows_nothing_where_a_box_is_stuck() -> None:
    game = playing("######", "#X__O#", "#P___#", "#____#", "#____#", "######")
    assert game.expert_action() is None


def test_a_box_that_is_lost_ends_the_game_where_the_task_says_so() -> None:
    row = ("######", "#____#", "#_X__#", "#_O__#", "#PXO_#", "######")
    for lost, over in (("goes_on", False), ("ends", True)):
        game = playing(*row, lost=lost)
        assert game.step("right")[1:4] == (0.0, False, False)  # home
        assert game.step("right")[1:4] == (0.0, over, False)  # and past it, into the corner


def test_one_box_of_two_earns_nothing_where_solved_rooms_alone_are_paid() -> None:
    rows = ("######", "#P_XO#", "#____#", "#__X_#", "#__O_#", "######")
    game = playing(*rows, steps=8, pays="solved")
    assert [game.step(move) for move in ["right", "right"] + ["up"] * 6][-1][1:4] == (0.0, False, True)


def test_which_rooms_are_solved_does_not_depend_on_either() -> None:
    won: dict[str, list[int]] = {}
    for name, options in (("both", {"lost": "ends", "pays": "solved"}), ("neither", {})):
        game = Sokoban("tiny", rules="", **options)  # type: ignore[arg-type]
        for seed in range(300):
            draw, over, reward = random.Random(seed), False, 0.0
            game.reset(seed)
            while not over:
                _, reward, terminated, truncated, _ = game.step(draw.choice(["up", "down", "left", "right"]))
                over = terminated or truncated
            if reward == 1:
                won.setdefault(name, []).append(seed)
    assert won["both"] == won["neither"] != []


def test_a_wrong_word_for_either_is_told() -> None:
    with pytest.raises(ValueError, match="lost is goes_on or ends; got 'end'"):
        Sokoban(lost="end")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pays is share or solved; got 'all'"):
        Sokoban(pays="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "beside"),
    [
        (LANE, "#__#"),
        (("######", "#____#", "#_XPX#", "#__X_#", "#OOO_#", "######"), "XX#_"),
        (("######", "#X___#", "#P_O_#", "#X_O_#", "#____#", "######"), "#X_#"),
    ],
    ids=[
        "a wall to the left and above",
        "boxes that move and one at a wall",
        "a box below, and one in the corner above",
    ],
)
def test_near_says_what_is_in_the_way_to_the_left_below_to_the_right_and_above(
    rows: tuple[str, ...], beside: str
) -> None:
    game = playing(*rows, render="near")
    listed, _, seen = game.grid().partition("=")
    assert seen == beside and listed == game.room.text(game.boxes, game.player, "list")
    for way, sign in zip(("left", "down", "right", "up"), seen, strict=True):
        game = playing(*rows, render="near")
        before, boxes = game.player, set(game.boxes)
        game.step(way)
        assert (game.player == before) == (sign == "#") and (game.boxes != boxes) == (sign == "X")
