"""FrozenLake keeps Farama's rules, and its text is what a model can read and answer."""

from __future__ import annotations

import random

import pytest

import rockroll
from rockroll.env.api import Env
from rockroll.env.frozen_lake import MAPS, FrozenLake, has_path
from rockroll.errors import UsageError


def play(lake: FrozenLake, seed: int, actions: list[str]) -> list[tuple[str, float, bool, bool]]:
    lake.reset(seed)
    return [lake.step(action)[:4] for action in actions]


def score(lake: FrozenLake, seeds: range, turns: int, solver: bool) -> float:
    draw, won = random.Random(1), 0.0
    for seed in seeds:
        lake.reset(seed)
        policy = lake.policy() if solver else {}
        for _ in range(turns):
            move = policy[lake.place] if solver else draw.choice(["up", "down", "left", "right"])
            _, reward, terminated, truncated, _ = lake.step(move)
            won += reward
            if terminated or truncated:
                break
    return won / len(seeds)


def test_it_is_made_by_name_and_is_an_env() -> None:
    lake = rockroll.make("rockroll:frozen_lake", size=5)
    assert isinstance(lake, Env)
    observation, info = lake.reset(seed=7)
    assert len(observation.splitlines()) == 6 and info == {}


def test_the_first_text_has_the_rules_and_then_the_grid_with_the_player() -> None:
    observation, _ = FrozenLake(map="4x4").reset(0)
    rules, *grid = observation.splitlines()
    assert "goal" in rules
    assert grid == ["P F F F", "F H F H", "F F F H", "H F F G"]
    assert FrozenLake(map="4x4", rules="").reset(0)[0].splitlines() == grid


def test_the_known_way_through_farama_s_map_wins_one() -> None:
    steps = play(FrozenLake(map="4x4"), 0, ["down", "down", "right", "right", "down", "right"])
    assert [s[1:] for s in steps] == [(0.0, False, False)] * 5 + [(1.0, True, False)]
    assert steps[0][0].splitlines()[1] == "P H F H"


def test_a_hole_ends_it_and_a_wall_does_not() -> None:
    steps = play(FrozenLake(map="4x4"), 0, ["up", "left", "right", "down"])
    assert [s[1:] for s in steps] == [(0.0, False, False)] * 3 + [(0.0, True, False)]


def test_it_truncates_at_farama_s_step_limit() -> None:
    steps = play(FrozenLake(map="4x4"), 0, ["up"] * 100)
    assert [s[3] for s in steps] == [False] * 99 + [True]


@pytest.mark.parametrize(
    ("said", "row"),
    [("I go DOWN.", 1), ("not right but down", 1), ("<answer>Down</answer>", 1), ("downward", 0), ("", 0)],
)
def test_the_last_direction_in_the_text_counts(said: str, row: int) -> None:
    lake = FrozenLake(map="4x4")
    lake.reset(0)
    observation, *_ = lake.step(said)
    assert lake.place == (row, 0)
    assert ("Say up, down, left or right." in observation) == (row == 0)


def test_the_moves_may_be_called_otherwise() -> None:
    lake = FrozenLake(map="4x4", moves=["links", "runter", "rechts", "rauf"])
    assert "Answer with one word: rauf, runter, links or rechts." in lake.reset(0)[0]
    lake.step("Runter, bitte")
    assert lake.place == (1, 0)
    assert lake.step("down")[0].startswith("Say rauf, runter, links or rechts.")


def test_after_the_end_comes_reset() -> None:
    lake = FrozenLake(map="4x4")
    play(lake, 0, ["right", "down"])
    with pytest.raises(RuntimeError, match="call reset"):
        lake.step("up")


@pytest.mark.parametrize("split", ["train", "eval"])
def test_random_maps_have_a_path_and_a_seed_names_one(split: str) -> None:
    lake = FrozenLake(split=split)  # type: ignore[arg-type]
    for seed in range(50):
        first = lake.reset(seed)[0]
        assert has_path(lake.rows)
        assert lake.reset(seed)[0] == first


def test_maps_of_evaluation_never_occur_in_training() -> None:
    maps = {}
    for split in ("train", "eval"):
        lake = FrozenLake(split=split)
        maps[split] = {lake.reset(seed)[0] for seed in range(2000)}
    assert len(maps["train"]) > 500 and len(maps["eval"]) > 50
    assert not maps["train"] & maps["eval"]


def test_slippery_ice_turns_a_move_to_either_side_a_third_of_the_time_each() -> None:
    lake = FrozenLake(map=("FFF", "FSF", "FFG"), slippery=True)
    ends = []
    for seed in range(3000):
        lake.reset(seed)
        lake.step("right")
        ends.append(lake.place)
    shares = [ends.count(place) / len(ends) for place in ((1, 2), (0, 1), (2, 1))]
    assert sum(shares) == 1.0 and all(abs(share - 1 / 3) < 0.03 for share in shares)


def test_the_scores_in_the_docstring() -> None:
    assert abs(score(FrozenLake(), range(2000), 16, solver=False) - 0.04) < 0.01
    assert abs(score(FrozenLake(slippery=True), range(2000), 16, solver=False) - 0.04) < 0.01
    assert score(FrozenLake(), range(200), 16, solver=True) == 1.0
    assert abs(score(FrozenLake(slippery=True), range(100), 16, solver=True) - 0.29) < 0.12


def test_the_solver_does_as_well_on_farama_s_slippery_map_as_is_known() -> None:
    lake = FrozenLake(map="4x4", slippery=True)
    lake.reset(0)
    policy, won = lake.policy(), 0.0
    for seed in range(2000):
        lake.reset(seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = lake.step(policy[lake.place])
            won, over = won + reward, terminated or truncated
    assert abs(won / 2000 - 0.74) < 0.03


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"map": "5x5"}, "map is random, 4x4, 8x8"),
        ({"map": ["SF", "G"]}, "equal lengths"),
        ({"map": ["SH", "HG"]}, "has a path"),
        ({"map": ["SF", "FF"]}, "at least one G"),
        ({"size": 1}, "size is 2 to 32"),
        ({"moves": ["a", "b", "c"]}, "moves are four different words"),
        ({"frozen": 0.1}, "frozen is 0.3 to 1.0"),
        ({"slipery": True}, "takes the options map, size.*got slipery"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rockroll.make("rockroll:frozen_lake", **options)


def test_farama_s_maps_are_whole() -> None:
    assert all(has_path(rows) for rows in MAPS.values())


def test_a_lake_is_shown_in_fewer_tokens_where_that_is_asked_for() -> None:
    spaced, compact, listed = (
        FrozenLake(map=["SFH", "FHF", "FFG"], rules="", render=render).reset(0)[0]  # type: ignore[arg-type]
        for render in ("spaced", "compact", "list")
    )
    assert (spaced, compact, listed) == ("P F H\nF H F\nF F G", "PFH\nFHF\nFFG", "#CE@a.i")
    with pytest.raises(ValueError, match="lakes of size 5 at most; got size 6"):
        FrozenLake(size=6, render="list")
    with pytest.raises(ValueError, match="render is spaced, compact or list; got 'flat'"):
        FrozenLake(render="flat")  # type: ignore[arg-type]
