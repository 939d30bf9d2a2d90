"""The rules of an Env (api.py), each tried out on somebody's.

In: how to make another one of it, and how to call it. Out: a finding for each rule, with what was seen and what to do
about it. Leaves playing to play.py, and those of a task that is worked on in a sandbox to work_rules.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from rockroll.env.api import Step, Tokens, read_reset, read_step
from rockroll.env.checks.calls import Broken, Calls, Hang
from rockroll.env.checks.finding import Finding, Level
from rockroll.env.checks.play import Played, Player, difference
from rockroll.errors import RockrollError

SEEDS = 8
NONSENSE = ("", "   ", "\x00\ud83d", "up " * 2000, '{"action": 1}', "🙂 <answer></answer>", "-1", "1e999", "nan")
"""Answers that models give sooner or later; each is to be answered by a step, not by an exception."""
SLOW_S = 0.005
"""A call that takes longer holds up the event loop, and every other episode on it."""
LONG = 20_000
"""Characters of one observation: most models' context is full after a few of them."""


class EnvRules:
    """The rules of an Env, tried in the order in which one that is broken explains the later ones."""

    def __init__(self, make: Callable[..., Any], calls: Calls, actions: Sequence[str], steps: int) -> None:
        self._make, self._calls, self._steps = make, calls, steps
        self._player = Player(calls, actions, steps)
        self._told = bool(actions)
        self._found: list[Finding] = []

    def findings(self, takes_split: bool) -> list[Finding]:
        rules: list[tuple[str, Callable[[], tuple[Level, str, str]]]] = [
            ("reset", self._reset),
            ("step", self._step),
            ("same seed", self._same_seed),
            ("two at once", self._two_at_once),
            ("other seeds", self._other_seeds),
            ("any text", self._any_text),
            ("reset in the middle", self._reset_in_the_middle),
            ("ends", self._ends),
            ("after the end", self._after_the_end),
            ("lengths", self._lengths),
            ("speed", self._speed),
            ("close", self._close),
        ]
        if takes_split:
            rules.insert(5, ("splits", self._splits))
        if callable(getattr(self._make(), "expert_action", None)):
            rules.append(("solver", self._solver))
        for place, (name, rule) in enumerate(rules):
            try:
                level, detail, cure = rule()
            except Hang as hang:
                cure = "a step waits for nobody: give what it asks a timeout; an endless loop here stops a whole run"
                self._found.append(Finding(name, "fail", str(hang), cure))
                return [*self._found, *(Finding(rest, "skipped", "after a hang") for rest, _ in rules[place + 1 :])]
            except (Broken, RockrollError) as error:
                level, detail, cure = "fail", str(error), _cure_of(name)
            self._found.append(Finding(name, level, detail, cure))
            if level == "fail" and name in ("reset", "step"):
                return [*self._found, *(Finding(rest, "skipped", f"after {name}") for rest, _ in rules[place + 1 :])]
        return self._found

    # ---- rules: each says (level, what was seen, what to do) ---------------------------------------------------

    def _reset(self) -> tuple[Level, str, str]:
        env = self._make()
        value = self._calls.of(env.reset, seed=0)
        text, _ = read_reset(value)
        if not isinstance(value[1], dict):
            return (
                "warn",
                f"info is a {type(value[1]).__name__}",
                "return a dictionary, {} where there is nothing to say",
            )
        system = value[1].get("system")
        if system is not None and not isinstance(system, str):
            return "fail", f'info["system"] is a {type(system).__name__}', "a system message is text"
        if not text.strip():
            return "warn", "the first observation is empty", "say what the situation is, and what an answer looks like"
        self._calls.of(self._make().reset)  # without a seed, too
        size = f"{len(text.ids)} tokens" if isinstance(text, Tokens) else f"{len(text)} characters"
        return "ok", f"(observation of {size}, info)", ""

    def _step(self) -> tuple[Level, str, str]:
        env = self._make()
        self._calls.of(env.reset, seed=0)
        value = self._calls.of(env.step, self._player.action(env, random.Random(0)))
        step = read_step(value)
        flags = value[2 : len(value) - 1]
        if odd := [
            flag for flag in flags if not isinstance(flag, bool) and type(flag).__name__ not in ("bool_", "bool")
        ]:
            return "fail", f"an end is told by {odd[0]!r}", "terminated, truncated and done are True or False"
        if not isinstance(value[-1], dict):
            return (
                "warn",
                f"info is a {type(value[-1]).__name__}",
                "return a dictionary, {} where there is nothing to say",
            )
        return "ok", f"{len(value)} values, reward {step.reward:g}", ""

    def _same_seed(self) -> tuple[Level, str, str]:
        env = self._make()
        for seed in range(3):
            first, again, other = (
                self._player.play(env, seed),
                self._player.play(env, seed),
                self._player.play(self._make(), seed),
            )
            for what, second in (("the same object", again), ("another object", other)):
                if said := difference(first, second):
                    cure = "draw from a random.Random(seed) made in reset, and set all of an episode's state there"
                    return "fail", f"seed {seed} played twice, by {what}: {said}", cure
        return "ok", "3 seeds, each played three times, gave the same episode each time", ""

    def _two_at_once(self) -> tuple[Level, str, str]:
        alone = [self._player.play(self._make(), seed) for seed in (0, 1)]
        envs = [self._make(), self._make()]
        firsts = [read_reset(self._calls.of(env.reset, seed=seed))[0] for seed, env in enumerate(envs)]
        steps: list[list[Step]] = [[], []]
        draws = [random.Random(f"play {seed}") for seed in (0, 1)]
        for _ in range(min(self._steps, 100)):
            for seed, env in enumerate(envs):
                if not steps[seed] or not steps[seed][-1].over:
                    steps[seed].append(read_step(self._calls.of(env.step, self._player.action(env, draws[seed]))))
        for seed in (0, 1):
            together = Played(firsts[seed], tuple(steps[seed]))
            if said := difference(alone[seed], together):
                cure = (
                    "episodes run side by side: keep nothing on the class or the module, and draw from your own "
                    "random.Random(seed) in place of random.seed and the module's functions"
                )
                return "fail", f"beside another episode, seed {seed} became another one: {said}", cure
        return "ok", "two episodes, stepped in turn, are what they are alone", ""

    def _other_seeds(self) -> tuple[Level, str, str]:
        env = self._make()
        firsts = {read_reset(self._calls.of(env.reset, seed=seed))[0] for seed in range(SEEDS)}
        if len(firsts) == 1:
            cure = "fine where the seed decides something that is not shown; else training sees one situation only"
            return "warn", f"{SEEDS} seeds begin with the same observation", cure
        return "ok", f"{len(firsts)} first observations of {SEEDS} seeds", ""

    def _splits(self) -> tuple[Level, str, str]:
        seen: dict[str, set[str]] = {}
        for split, odd in (("train", 0), ("eval", 1)):
            env = self._make(split)
            seen[split] = {read_reset(self._calls.of(env.reset, seed=2 * i + odd))[0] for i in range(8 * SEEDS)}
        if shared := seen["train"] & seen["eval"]:
            cure = "keep situations apart by a hash of what is shown, as rockroll/env/frozen_lake.py does"
            return "warn", f"{len(shared)} of {8 * SEEDS} evaluation's observations occur in training too", cure
        return "ok", f"{8 * SEEDS} situations of each split, none shared", ""

    def _solver(self) -> tuple[Level, str, str]:
        solver, chance = (self._earned(each) for each in (True, False))
        said = f"its solver earns {solver:.2f} an episode, answers at random {chance:.2f}"
        if solver <= chance:
            return "warn", said, "a solver that earns no more than chance shows nothing that could be learnt"
        return "ok", said, ""

    def _earned(self, solver: bool) -> float:
        """The mean reward of an episode."""
        env, draw, total = self._make(), random.Random(0), 0.0
        for seed in range(SEEDS):
            self._calls.of(env.reset, seed=seed)
            for _ in range(self._steps):
                known = self._calls.of(env.expert_action) if solver else None
                action = self._player.action(env, draw) if known is None else known
                step = read_step(self._calls.of(env.step, action))
                total += step.reward
                if step.over:
                    break
        return total / SEEDS

    def _any_text(self) -> tuple[Level, str, str]:
        env = self._make()
        for text in NONSENSE:
            self._calls.of(env.reset, seed=0)
            try:
                read_step(self._calls.of(env.step, text))
            except (Broken, RockrollError) as error:
                shown = repr(text if len(text) < 30 else text[:30] + "…")
                return "fail", f"the answer {shown}: {error}", _cure_of("any text")
        return "ok", f"{len(NONSENSE)} answers without sense were answered", ""

    def _reset_in_the_middle(self) -> tuple[Level, str, str]:
        env = self._make()
        whole = self._player.play(env, 1)
        self._calls.of(env.reset, seed=0)
        read_step(self._calls.of(env.step, self._player.action(env, random.Random(0))))
        if said := difference(whole, self._player.play(env, 1)):
            cure = "reset begins anew whatever came before: set every attribute of the episode there"
            return "fail", f"seed 1, after an episode that was left in its middle: {said}", cure
        return "ok", "an episode that was left leaves nothing behind", ""

    def _ends(self) -> tuple[Level, str, str]:
        env = self._make()
        lengths, endless = [], 0
        for seed in range(SEEDS):
            played = self._player.play(env, seed, self._steps)
            lengths.append(len(played.steps))
            endless += not played.over
        if endless:
            cure = "a recipe's max_turns ends it; a limit of steps of your own (truncated) is better"
            if not self._told:
                cure += ". If it waits for certain words, give them: --action WORD"
            return "warn", f"{endless} of {SEEDS} episodes went on for {self._steps} steps", cure
        return "ok", f"{SEEDS} episodes of {min(lengths)} to {max(lengths)} steps", ""

    def _after_the_end(self) -> tuple[Level, str, str]:
        env = self._make()
        if not self._player.play(env, 0, self._steps).over:
            return "skipped", "no end was reached", ""
        try:
            late = read_step(self._calls.of(env.step, self._player.action(env, random.Random(1))))
        except (Broken, RockrollError):
            return "ok", "a step after the end is refused", ""
        if late.reward != 0 or not late.over:
            cure = "raise where step is called after the end: it finds the callers that forgot reset"
            return (
                "warn",
                f"a step after the end gave reward {late.reward:g}{'' if late.over else ' and went on'}",
                cure,
            )
        return "ok", "a step after the end changes nothing", ""

    def _lengths(self) -> tuple[Level, str, str]:
        env = self._make()
        played = [self._player.play(env, seed, 50) for seed in range(3)]
        longest = max(len(text) for each in played for text in (each.first, *(step.observation for step in each.steps)))
        if longest > LONG:
            cure = "the whole conversation has to fit into the model's context: say less, or only what changed"
            return "warn", f"an observation has {longest} characters", cure
        return "ok", f"observations of up to {longest} characters", ""

    def _speed(self) -> tuple[Level, str, str]:
        slowest = {name: self._calls.slowest.get(name, 0.0) for name in ("reset", "step")}
        name = max(slowest, key=lambda each: slowest[each])
        env = self._make()
        times = []
        for seed in range(3):
            began = time.perf_counter()
            played = self._player.play(env, seed, 20)
            times.append((time.perf_counter() - began) / (1 + len(played.steps)))
        if (usual := sorted(times)[1]) > SLOW_S:
            cure = "say slow: true in the recipe's task: it is then stepped in a thread"
            return "warn", f"a call takes {usual * 1e3:.1f} ms; the slowest, {name}, took {slowest[name]:.2g} s", cure
        return "ok", f"a call takes {usual * 1e3:.2f} ms; the slowest, {name}, took {slowest[name] * 1e3:.1f} ms", ""

    def _close(self) -> tuple[Level, str, str]:
        env = self._make()
        if not callable(getattr(env, "close", None)):
            return "ok", "it has none", ""
        self._calls.of(env.reset, seed=0)
        self._calls.of(env.close)
        return "ok", "in the middle of an episode", ""


def _cure_of(name: str) -> str:
    return {
        "reset": "def reset(self, seed=None): … return observation, {}",
        "step": "def step(self, action): … return observation, reward, terminated, truncated, {}",
        "any text": "text that is no action is the model's mistake: answer it with a hint, or end with a low reward",
        "after the end": "raise an ordinary exception",
    }.get(name, "an exception makes the episode env_error: it is replaced, and too many of them end the run")
