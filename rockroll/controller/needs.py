"""What each process of a run needs of its machine.

In: a RunConfig and its model's folder. Out: Needs by process name, for placement and `rockroll plan --ray`. Leaves
finding machines to placement/.
"""

from __future__ import annotations

from pathlib import Path

from rockroll.controller.config import RunConfig
from rockroll.engine.config import EngineConfig
from rockroll.placement.needs import Needs
from rockroll.train.critic import critic_config
from rockroll.train.extent import adapter_parameters, parameters_of, state_bytes

PROCESS_BYTES = 700 * 10**6
"""A process that has loaded torch, transformers and DeepSpeed, before its model (measured: 0.5 to 0.7 GB)."""
HALF = 0.5
"""Of a shared GPU, as Ray counts it, where the recipe leaves the engine's share open."""
_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


def needs(config: RunConfig, model: Path | None, *, train: bool = True, gpus: float = 0.0) -> dict[str, Needs]:
    """By process, trainers first. model: its folder; None: not on this machine yet, and its size is not known.

    gpus: how many the cluster has. Processes whose device is `auto` or `cuda` have one each where there are enough,
    else trainers and engines share them as engine.gpu_share says; 0: `auto` is a CPU.
    """
    parameters = parameters_of(model) if model is not None else 0
    adapter = adapter_parameters(model, config.train) if model is not None else 0
    trainers = {"trainer": config.train} if train else {}
    if train and config.train.has_critic:
        trainers["critic"] = critic_config(config.train, config.steps)
    replicas = config.engine.replicas if config.samples else 0
    on_gpu = [each.device != "cpu" for each in trainers.values() for _ in range(each.ranks)]
    on_gpu += [config.engine.device != "cpu"] * replicas
    alone = sum(on_gpu) <= gpus
    found: dict[str, Needs] = {}
    for name, each in trainers.items():
        part = 1.0 if alone else (1.0 - (config.engine.gpu_share or HALF)) / len(trainers)
        wanted = Needs(
            cpus=max(1, each.threads),
            gpus=_gpus(each.device, gpus, part),
            memory=PROCESS_BYTES + state_bytes(parameters, each, adapter),
        )
        found |= {f"{name}-{rank}": wanted for rank in range(each.ranks)}
    wanted = engine_needs(config.engine, parameters, gpus=gpus, alone=alone)
    return found | {f"engine-{number}": wanted for number in range(replicas)}


def engine_needs(config: EngineConfig, parameters: int, *, gpus: float = 0.0, alone: bool = True) -> Needs:
    """Of one replica."""
    return Needs(
        cpus=config.threads,
        gpus=_gpus(config.device, gpus, 1.0 if alone else config.gpu_share or HALF),
        memory=PROCESS_BYTES + parameters * _ITEM[config.dtype],
    )


def _gpus(device: str, there: float, part: float) -> float:
    if device == "cpu" or (device == "auto" and not there):
        return 0.0
    return part
