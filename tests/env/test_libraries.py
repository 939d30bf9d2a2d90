"""Libraries' environments by name: their observations as text, their actions from text, an error where neither is.

Gymnasium is there for tests; the others are tried where they are installed (`pip install rockroll[envs]`).
"""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

import rockroll
from rockroll.env.check import check
from rockroll.env.library import LIBRARIES
from rockroll.env.own_random import OwnRandom
from rockroll.errors import UsageError

gymnasium: Any = pytest.importorskip("gymnasium")
spaces: Any = pytest.importorskip("gymnasium.spaces")


class Echo(gymnasium.Env):
    """Shows a value of one space, and keeps the last action of another."""

    def __init__(self, seen: Any, done: Any) -> None:
        self.observation_space, self.action_space = seen, done

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.last = action
        return self.observation_space.sample(), 0.5, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def echo() -> Any:
    gymnasium.register("Echo-v0", entry_point=Echo, disable_env_checker=True)
    yield
    del gymnasium.registry["Echo-v0"]


def echoing(seen: Any, done: Any, **options: Any) -> Any:
    return rockroll.make("gymnasium:Echo-v0", seen=seen, done=done, **options)


def test_cart_pole_is_four_numbers_and_a_choice_of_two() -> None:
    env = rockroll.make("gymnasium:CartPole-v1")
    observation, _ = env.reset(seed=1)
    rule, numbers = observation.splitlines()
    assert rule == "Answer with a whole number from 0 to 1."
    assert len([float(number) for number in numbers.split()]) == 4
    observation, reward, terminated, truncated, _ = env.step("I push it to the right: 1")
    assert (reward, terminated, truncated) == (1.0, False, False)
    again, *_ = env.step("left!")  # no action: no step
    assert again == f"{rule}\n{observation}"


def test_words_may_stand_for_a_choice_and_a_drawing_for_the_state() -> None:
    env = rockroll.make(
        "gymnasium:FrozenLake-v1", actions=["left", "down", "right", "up"], observe="ansi", is_slippery=False
    )
    observation, _ = env.reset(seed=0)
    assert observation.splitlines() == [
        "Answer with one of: left, down, right, up.",
        "[S]FFF",
        "FHFH",
        "FFFH",
        "HFFG",
        "0",
    ]
    observation, *_ = env.step("We go DOWN")
    assert "[F]HFH" in observation and observation.endswith("\n4")


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "MountainCarContinuous-v0"])
def test_gymnasium_s_own_keep_the_contract(name: str) -> None:
    report = check(f"gymnasium:{name}", steps=300)
    assert report.ok, [finding for finding in report.findings if finding.level == "fail"]


@pytest.mark.parametrize(
    ("space", "said", "meant"),
    [
        (spaces.Discrete(3, start=-1), "I choose -1", -1),
        (spaces.Discrete(3), "3", None),
        (spaces.Discrete(3), "1.5", None),
        (spaces.MultiDiscrete([2, 5]), "1 and then 4", [1, 4]),
        (spaces.MultiBinary(3), "1 0 1", [1, 0, 1]),
        (spaces.MultiBinary(3), "1 0 2", None),
        (spaces.MultiBinary(3), "1 0 257", None),
        (spaces.Box(0, 255, (1,), "uint8"), "255", [255]),
        (spaces.Box(0, 255, (1,), "uint8"), "-1", None),
        (spaces.Box(-1.0, 1.0, (2,)), "move by 0.5, -0.25", [0.5, -0.25]),
        (spaces.Box(-1.0, 1.0, (2,)), "0.5 and 1e999", None),
        (spaces.Text(4), "abcd", "abcd"),
        (spaces.Text(4), "abcde", None),
    ],
)
def test_an_action_is_read_from_text_if_it_is_one_of_the_space(space: Any, said: str, meant: Any) -> None:
    env = echoing(spaces.Discrete(2), space)
    env.reset(seed=0)
    reward = env.step(said)[1]
    assert reward == (0.0 if meant is None else 0.5)
    if meant is not None:
        last = env._env.unwrapped.last
        assert (last.tolist() if hasattr(last, "tolist") else last) == pytest.approx(meant) if meant != "abcd" else last


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(4), spaces.MultiDiscrete([2, 5]), spaces.MultiBinary(3), spaces.Box(-1.0, 1.0, (2, 2))],
)
def test_what_is_drawn_at_random_is_written_so_that_it_is_read(space: Any) -> None:
    env = echoing(spaces.Discrete(2), space)
    env.reset(seed=0)
    assert all(env.step(env.sample_random_action())[1] == 0.5 for _ in range(20))


def test_parts_with_names_are_lines_and_tables_are_rows() -> None:
    seen = spaces.Dict({"word": spaces.Text(3), "place": spaces.Tuple([spaces.Discrete(9), spaces.Discrete(9)])})
    env = echoing(seen, spaces.Discrete(2))
    _, place, word = env.reset(seed=0)[0].splitlines()
    assert place.startswith("place: ") and ", " in place and word.startswith("word: ")
    table = echoing(spaces.Box(0, 9, (2, 3), dtype=int), spaces.Discrete(2))
    assert [len(row.split()) for row in table.reset(seed=0)[0].splitlines()[1:]] == [3, 3]


@pytest.mark.parametrize(
    ("seen", "done", "options", "says"),
    [
        (spaces.Box(0, 255, (64, 64, 3)), spaces.Discrete(2), {}, "the observation has 12288 numbers"),
        (spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2), {}, "is a Sequence, which has no form as text"),
        (spaces.Discrete(2), spaces.Dict({"a": spaces.Discrete(2)}), {}, "have no form as text; write an Env"),
        (spaces.Discrete(2), spaces.Discrete(2), {"actions": ["a"]}, "actions are words for each"),
        (spaces.Discrete(2), spaces.Discrete(2), {"observe": "html"}, "observe is value or ansi"),
    ],
)
def test_what_has_no_form_as_text_is_refused_when_it_is_made(seen: Any, done: Any, options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        echoing(seen, done, **options)


@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_a_drawing_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="CartPole-v1 does not draw itself as text: leave out observe: ansi"):
        rockroll.make("gymnasium:CartPole-v1", observe="ansi")


def test_a_wrong_name_has_its_nearest_and_a_wrong_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"did you mean CartPole-v\d.*rockroll env ls gymnasium"):
        rockroll.make("gymnasium:CartPole-v7")
    with pytest.raises(UsageError, match="sloppy"):
        rockroll.make("gymnasium:CartPole-v1", sloppy=True)


def test_a_library_that_is_not_installed_is_asked_for_by_its_package_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, library in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, library.module, None)  # importing it fails as if it were not there
        with pytest.raises(UsageError, match=f"pip install {library.package}"):
            rockroll.make(library.example)
        with pytest.raises(UsageError, match=prefix):
            rockroll.make(f"{prefix}:x")


def test_no_library_is_imported_before_one_of_its_names_is_asked_for() -> None:
    code = "import rockroll, sys; rockroll.make('rockroll:sokoban'); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {library.module for library in LIBRARIES.values()} & set(said)


def test_random_numbers_of_one_episode_are_not_another_s_nor_the_process_s() -> None:
    def draws(own: OwnRandom, seed: int | None = None) -> float:
        with own.here():
            if seed is not None:
                random.seed(seed)
            return random.random()

    alone = OwnRandom()
    expected = [draws(alone, 5), draws(alone), draws(alone)]
    before = random.getstate()
    one, other = OwnRandom(), OwnRandom()
    mixed = [draws(one, 5), draws(other, 5), draws(one), draws(other), draws(one), draws(other)]
    assert mixed[::2] == mixed[1::2] == expected
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("name", "options", "actions"),
    [
        ("gem:game:GuessTheNumber-v0-easy", {}, []),
        ("gem:game:Sokoban-v0-easy", {}, []),
        ("gem:rg:leg_counting", {}, []),
        ("reasoning-gym:chain_sum", {"max_terms": 3}, []),
        ("reasoning-gym:leg_counting", {}, []),
        ("textarena:GuessTheNumber-v0", {}, ["[3]", "[17]"]),
        ("textarena:TicTacToe-v0", {"players": 2, "opponent": ["[0]", "[1]", "[2]"]}, ["[4]", "[5]"]),
        ("textarena:TicTacToe-v0", {"players": 2, "seat": 1, "opponent": ["[0]", "[1]", "[2]"]}, ["[4]", "[5]"]),
    ],
)
def test_the_other_libraries_keep_the_contract(name: str, options: dict[str, Any], actions: list[str]) -> None:
    pytest.importorskip(LIBRARIES[name.partition(":")[0]].module)
    report = check(name, options, actions=actions)
    assert report.ok, [finding for finding in report.findings if finding.level == "fail"]


def test_reasoning_gym_scores_the_reference_answer_with_one() -> None:
    pytest.importorskip("reasoning_gym")
    env = rockroll.make("reasoning-gym:chain_sum")
    for seed in range(5):
        env.reset(seed)
        right = env._entry["answer"]
        assert env.step(f"so <answer>1</answer> no, <answer> {right} </answer>")[1:4] == (1.0, True, False)
        env.reset(seed)
        assert env.step("<answer>no</answer>")[1] < 1.0


def test_textarena_shows_what_is_new_and_the_opponent_plays() -> None:
    pytest.importorskip("textarena")
    env = rockroll.make("textarena:TicTacToe-v0", players=2, opponent=["[0]", "[1]", "[3]"])
    first, _ = env.reset(seed=0)
    observation, reward, terminated, *_ = env.step("[4]")
    assert "Player 1" in observation and "[0]" in observation and len(observation) < len(first)
    assert (reward, terminated) == (0.0, False)
    env.step("[2]")
    assert env.step("[6]")[1:3] == (1.0, True)
    with pytest.raises(UsageError, match="needs opponent"):
        rockroll.make("textarena:TicTacToe-v0", players=2)
