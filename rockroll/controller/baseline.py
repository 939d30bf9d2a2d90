"""What a task's own policies score on a recipe's held-out tasks: chance, and the reference solver.

In: a RunConfig and which policy. Out: an Evaluation over the very situations that `rockroll eval` gives a model. Starts
no engine and no sandbox. Leaves playing to rollout/own_play.py.
"""

from __future__ import annotations

from rockroll.controller.config import RunConfig
from rockroll.controller.evaluation import Evaluation, rated
from rockroll.errors import UsageError
from rockroll.rollout.domain import held_out
from rockroll.rollout.mixture import Arm
from rockroll.rollout.own_play import episode
from rockroll.rollout.tasks import EnvTask, Policy, resolve_all


async def evaluate(config: RunConfig, by: Policy) -> Evaluation:
    """Raises UsageError for a task that has no such policy, or that an agent works on in a sandbox."""
    tasks = resolve_all(config.domains, config.crew)
    found = []
    for number, at in enumerate(held_out(config.domains, config.eval.episodes)):
        task = tasks[Arm(at.task, at.level)]
        if not isinstance(task, EnvTask):
            raise UsageError(
                f"{at.task} is worked on by an agent in a sandbox, and has no policy of its own: leave out --policy"
            )
        found.append(await episode(task, at, number, by, draws=config.seed))
    return rated(config, found)
