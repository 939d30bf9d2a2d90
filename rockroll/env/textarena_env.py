"""`textarena:ID`: TextArena's games, for one player or against a fixed opponent.

In: an id of TextArena's registry, as `GuessTheNumber-v0`, and options. Out: an Env of the model's turns: what was said
since its last one, and at the end its own reward. Leaves rules and rewards to TextArena.

TextArena seeds and draws from the process's generators; each episode has a state of its own here (own_random.py).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

from rockroll.env.library import imported, known_or_refused
from rockroll.env.own_random import OwnRandom

TURNS = 1000
"""The opponents' turns in a row: more is a game that does not come back to the model."""


class TextArenaEnv:
    """id: of TextArena's registry. players: how many there are. seat: which of them the model is.

    opponent: who plays the others. `module:name` of a function from the observation, as text, to the answer, or of a
    class whose objects are such functions (TextArena's agents are); or a list of answers that are said in turn.
    options: of the game's constructor.
    """

    def __init__(
        self, id: str, players: int = 1, seat: int = 0, opponent: str | Sequence[str] = (), **options: Any
    ) -> None:
        known_or_refused("textarena", id, self.names())
        if not 0 <= seat < players:
            raise ValueError(f"seat is 0 to players - 1; got {seat} of {players}")
        if players > 1 and not opponent:
            raise ValueError("a game for several needs opponent: module:name or a list of answers")
        raw = f"{id}-raw"
        with (random := OwnRandom()).here():
            # The raw form tells what is new; the others repeat the conversation, which the model has already.
            self._env = imported("textarena", "textarena").make(raw if raw in self.names() else id, **options)
        self._random, self._players, self._seat, self._named = random, players, seat, opponent
        self._over = True

    @staticmethod
    def names() -> list[str]:
        """Every id that can be made."""
        imported("textarena", "textarena")
        return sorted(imported("textarena.envs.registration", "textarena").ENV_REGISTRY)

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self._opponent = opponent_of(self._named) if self._players > 1 else None
        with self._random.here():
            try:
                self._env.reset(num_players=self._players, seed=seed)
            except AssertionError as error:  # how the games check the number of players
                raise ValueError(f"{error}; say players: and, for more than one, opponent:") from error
            over, observation = self._until_ours(False)
        if over:
            raise ValueError("the game was over before the model's first turn")
        self._over = False
        return observation, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise RuntimeError("this episode is over: call reset before step")
        with self._random.here():
            done, _ = self._env.step(action)
            self._over, observation = self._until_ours(bool(done))
            if not self._over:
                return observation, 0.0, False, False, {}
            rewards, infos = self._env.close()
        return observation, float((rewards or {}).get(self._seat, 0.0)), True, False, (infos or {}).get(self._seat, {})

    def _until_ours(self, done: bool) -> tuple[bool, str]:
        """The others' turns. (the game is over, what the model sees)."""
        for _ in range(TURNS):
            if done:
                return True, self._said(self._env.state.observations.get(self._seat, []), self._seat)
            player, observation = self._env.get_observation()
            if player == self._seat:
                return False, self._said(observation, player)
            assert self._opponent is not None
            done, _ = self._env.step(self._opponent(self._said(observation, player)))
        raise ValueError(f"the opponents took {TURNS} turns without the model having one")

    def _said(self, observation: Any, player: int) -> str:
        """The messages, each with its speaker but for the game's; what the player itself said is left out."""
        if isinstance(observation, str):
            return observation
        roles = self._env.state.role_mapping
        return "\n".join(
            str(text) if speaker == -1 else f"[{roles.get(speaker, f'Player {speaker}')}] {text}"
            for speaker, text, _ in observation or []
            if speaker != player
        )


def opponent_of(named: str | Sequence[str]) -> Callable[[str], str]:
    """A new opponent. Raises ValueError for a name that is none."""
    if not isinstance(named, str):
        answers, at = list(named), -1

        def say(_: str) -> str:
            nonlocal at
            at += 1
            return answers[at % len(answers)]

        return say
    module, _, name = named.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"opponent is module:name of a function or class; got {named!r}: {error}") from None
    return cast(Callable[[str], str], found() if inspect.isclass(found) else found)
