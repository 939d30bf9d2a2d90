"""What a solver and chance earn: the table of docs/tasks.md is what `rockroll env scores` plays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rockroll.env.api import Env
from rockroll.env.check import check
from rockroll.env.registry import BUILT_IN, find
from rockroll.env.scores import scores
from rockroll.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
ROW = r"^\| `(rockroll:\w+)` \| ([\w ]+) \| (\d\.\d\d) \| (\d\.\d\d) \| (\d+) \|$"
STATED = {(name, level): tuple(map(float, rest)) for name, level, *rest in re.findall(ROW, PAGE.read_text(), re.M)}
PLAYED = [name for name in BUILT_IN if issubclass(find(name), Env)]


def test_the_page_states_every_level_of_every_environment_that_is_played() -> None:
    levels = {name: getattr(find(name), "levels", {}) for name in PLAYED}
    assert set(STATED) == {(name, level) for name in PLAYED for level in levels[name]}
    assert all(len(levels[name]) >= 3 for name in PLAYED)


@pytest.mark.parametrize("name", ["rockroll:arithmetic", "rockroll:shell_quiz"])
def test_the_reference_reaches_what_is_stated_and_chance_does_not(name: str) -> None:
    for score in scores(name, episodes=40):
        chance, best, _ = STATED[name, score.level]
        assert score.reference == best == 1.0 and score.random <= chance + 0.1 and score.shared == 0, score
    assert scores(name, episodes=5) == scores(name, episodes=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYED)
def test_the_page_is_what_is_played(name: str) -> None:
    for score in scores(name, episodes=300):
        chance, best, shared = STATED[name, score.level]
        assert (round(score.random, 2), round(score.reference, 2), score.shared) == (chance, best, shared), score


def test_options_stand_in_place_of_levels_and_what_has_no_solver_is_refused() -> None:
    (score,) = scores("rockroll:sokoban", {"level": "tiny", "boxes": 1}, episodes=3)
    assert (score.level, score.reference) == ("", 1.0)
    with pytest.raises(UsageError, match=r"tests\.env\.games:Guess has no expert_action"):
        scores("tests.env.games:Guess")
    with pytest.raises(UsageError, match="rockroll:shell has no expert_action and no sample_random_action"):
        scores("rockroll:shell")


def test_the_check_plays_the_solver() -> None:
    (found,) = [each for each in check("rockroll:shell_quiz").findings if each.name == "solver"]
    assert found.level == "ok" and found.detail.startswith("its solver earns 1.00 an episode, answers at random 0.")
