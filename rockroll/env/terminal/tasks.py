"""`rockroll:terminal`: a folder of terminal tasks, in Harbor's or Terminal-Bench's layout, read as it is.

In: a folder, a seed and a split. Out: a situation (the instruction, and the box that the task's Dockerfile makes), and
the reward that the task's own tests give a copy of the box. Leaves the layouts to layout.py, the agent to its room.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rockroll.env.api import Situation, Split
from rockroll.env.terminal.grade import AGENT_LOGS, SAID, Verdict, graded, script, tested
from rockroll.env.terminal.layout import TerminalTask, find_tasks, read
from rockroll.errors import EnvError, FileError, RockrollError, UsageError
from rockroll.sandbox.config import SandboxConfig

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

BUNDLED = Path(__file__).parent / "bundled"
"""rockroll's own three."""
DEFAULT_CWD = "/"


class TerminalTasks:
    """A `SandboxTask` that has a box of its own for each situation.

    path: a task, or a folder of them; rockroll's own three where left out. held_out: share of the tasks that training
    never sees, chosen by a hash of their names; 0: all are in both splits (a benchmark), 1: none is trained.
    stand_in: images in place of those that FROM names (sandbox/container/build.py). box: settings of every box, over
    the tasks' own: {network: open}. time: multiplies the tasks' limits for the agent. only: names of some tasks.
    """

    own_boxes = True
    """Each situation names its box: none is kept warm."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        held_out: float = 0.0,
        stand_in: Mapping[str, str] | None = None,
        box: Mapping[str, Any] | None = None,
        time: float = 1.0,
        only: list[str] | None = None,
    ) -> None:
        if not 0 <= held_out <= 1:
            raise ValueError(f"held_out is a share, 0 to 1; got {held_out}")
        if not 0 < time < math.inf:
            raise ValueError(f"time is a factor above 0; got {time}")
        try:
            replace(SandboxConfig(), **dict(box or {}))
        except (TypeError, ValueError) as error:
            raise UsageError(f"box: settings of a sandbox, as in {{cpus: 4}}; {error}") from None
        self.tasks = [read(each) for each in find_tasks(BUNDLED if path is None else Path(path).expanduser())]
        if only:
            known = [task.name for task in self.tasks]
            if unknown := sorted(set(only) - set(known)):
                raise UsageError(f"only: there is no task {unknown[0]}; the folder has {', '.join(known)}")
            self.tasks = [task for task in self.tasks if task.name in only]
        self._stand_in, self._box, self._time = dict(stand_in or {}), dict(box or {}), time
        order = sorted(self.tasks, key=lambda task: hashlib.sha256(task.name.encode()).digest())
        count = math.ceil(held_out * len(order) - 1e-9)
        self._split: dict[Split, list[TerminalTask]] = {
            "eval": sorted(order[:count], key=lambda task: task.name) if count else self.tasks,
            "train": order[count:],
        }
        self._images: dict[str, tuple[str, str]] = {}
        self._untouched: dict[str, Verdict] = {}
        self._trying = asyncio.Lock()

    async def prepare(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Builds every image that is not there yet. Raises ImageMissing, HostError, EnvError, each with the cure."""
        from rockroll.sandbox.container.build import build
        from rockroll.sandbox.container.podman import PodmanService

        async with PodmanService() as podman:
            for task in self.tasks:
                if task.name in self._images:
                    continue
                try:
                    if task.context is None:
                        name = self._stand_in.get(task.image or "", task.image or "")
                    else:
                        name = await build(
                            podman,
                            task.context,
                            task.dockerfile,
                            stand_in=self._stand_in,
                            timeout_s=task.build_seconds,
                            say=say,
                        )
                    found = await podman.image_inspect(name)
                except RockrollError as error:
                    raise type(error)(f"{task.name}: {error.message}", **error.fields) from None
                folder = ((found.get("Config") or {}).get("WorkingDir")) or DEFAULT_CWD
                self._images[task.name] = name, folder

    def situation(self, seed: int, split: Split) -> Situation:
        """Evaluation goes through its tasks in the order of their names; training draws."""
        among = self._split[split]
        if not among:
            raise UsageError("held_out: 1 keeps every task for evaluation: there is none to train on; say less than 1")
        task = among[seed % len(among)] if split == "eval" else random.Random(f"terminal {seed}").choice(among)
        return self.of(task)

    def of(self, task: TerminalTask) -> Situation:
        """The situation of that task. EnvError before `prepare`."""
        if task.name not in self._images:
            raise EnvError(f"{task.name}: its image was not built; `await prepare()` comes first")
        image, folder = self._images[task.name]
        return Situation(
            instruction=task.instruction,
            env=task.env,
            cwd=task.cwd or folder,
            box={**task.box, **self._box, "image": image},
            timeout=task.agent_seconds * self._time,
            secret=task,
        )

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        """The tests' reward for a copy of the box. Where they give none although they do in a box as it was at the
        beginning, the agent broke what they need: 0.0. Where they give none there either: EnvError."""
        task: TerminalTask = situation.secret
        verdict = await graded(task, sandbox, situation.cwd)
        if verdict.reward is not None:
            return verdict.reward
        async with self._trying:
            if (untouched := self._untouched.get(task.name)) is None:
                async with type(sandbox)(replace(sandbox.config, name=None), base_url="") as box:
                    untouched = self._untouched[task.name] = await tested(task, box, situation.cwd)
        if untouched.reward is None:
            raise EnvError(f"{task.name}: {untouched.why}, in an untouched box too: {untouched.said[-400:]}")
        return 0.0


async def solve(task: TerminalTask, sandbox: Sandbox, situation: Situation) -> tuple[int | None, str]:
    """Puts the reference solution into the box and runs it: (exit code, the end of what it said). EnvError where the
    task has none."""
    if task.solution is None:
        raise EnvError(f"{task.name}: it has no reference solution (solution/solve.sh, or solution.sh)")
    source, target = task.solution
    try:
        await sandbox.mkdir(AGENT_LOGS, mode=0o777)
        await sandbox.upload(source, target)
    except FileError as error:
        raise EnvError(f"{task.name}: its solution cannot be put into the box: {error}") from None
    env = {"DEBIAN_FRONTEND": "noninteractive", **task.env, **task.solve_env}
    run = await script(sandbox, task.solve, cwd=situation.cwd, timeout=situation.timeout or 600.0, env=env)
    return run.exit_code if run.outcome == "ok" else None, run.output.strip()[-SAID:]
