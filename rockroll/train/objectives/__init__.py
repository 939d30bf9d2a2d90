"""The objectives by their names in a recipe: one module each.

In: a TrainConfig. Out: its Objective. Leaves what one is to objective.py.
"""

from __future__ import annotations

from rockroll.train.config import TrainConfig
from rockroll.train.objective import Objective
from rockroll.train.objectives.policy import PolicyObjective
from rockroll.train.objectives.value import ValueObjective

OBJECTIVES: dict[str, type[Objective]] = {"policy": PolicyObjective, "value": ValueObjective}


def objective_of(config: TrainConfig) -> type[Objective]:
    """The class that `train.objective` names."""
    return OBJECTIVES[config.objective]
