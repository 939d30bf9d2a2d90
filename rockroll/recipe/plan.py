"""What a recipe would do, told without starting anything.

In: a RunConfig. Out: rows of (part, where, what) for `rockroll plan`. Leaves doing it to the controller.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rockroll import units
from rockroll.agent.install import folder
from rockroll.agent.team import TeamConfig
from rockroll.controller import reporting
from rockroll.controller.boxes import boxes, installed, own_boxes, pool_sizes
from rockroll.controller.config import RunConfig
from rockroll.controller.model_path import Model, find
from rockroll.controller.one_gpu import computed
from rockroll.controller.replay import Recorded
from rockroll.controller.source import data_set
from rockroll.engine.kinds import gpu_bytes, kinds, on_gpu
from rockroll.errors import UsageError
from rockroll.recipe.load import dump
from rockroll.rollout.domain import held_out, shares
from rockroll.rollout.tasks import Crew
from rockroll.train.config import TrainConfig
from rockroll.train.critic import critic_config
from rockroll.train.extent import adapter_parameters, context_of, parameters_of, state_bytes, widest


@dataclass(frozen=True, kw_only=True)
class Line:
    """One part of the run."""

    part: str
    where: str
    what: str


def _engines(replicas: int) -> str:
    return "one process, this machine" if replicas == 1 else f"{replicas} processes (replicas), this machine"


def plan(config: RunConfig) -> list[Line]:
    """Every process and sandbox of the run, in the order in which they start."""
    reporting.require(config)
    model = find(config.model)
    kind = next(kind for kind in kinds() if kind.name == config.engine.kind)
    cores = os.cpu_count() or 1
    rollout, train = config.rollout, config.train
    batch = rollout.groups * rollout.episodes
    data = data_set(config)
    steps = data.steps(config.steps) if data else config.steps
    with_agent = boxes(config)
    what = f"objective {train.objective}"
    if config.task is not None:
        what += f"; {config.task.env}, {_by(config.crew)}"
    elif config.tasks:
        what += f"; a mixture of {len(config.tasks)} tasks"
    lines = [
        Line(part="controller", where="this process", what=f"{steps} steps, seed {config.seed}; {what}"),
        Line(part="model", where="this machine", what=f"{model}{', ' * bool(model.todo)}{model.todo}"),
    ]
    if config.samples:
        lines.append(
            Line(
                part="engine",
                where=_engines(config.engine.replicas) if kind.ok else "cannot run here",
                what=f"{kind.detail}, {config.engine.dtype}, {config.engine.max_batch} requests at once"
                + " each" * (config.engine.replicas > 1)
                if kind.ok
                else f"{config.engine.kind}: {kind.detail}; {kind.cure}",
            )
        )
    lines.append(
        Line(
            part="trainer",
            where=f"{train.ranks} process{'es' * (train.ranks > 1)}, this machine",
            what=_trainer(train, model, config) + _beside(config),
        )
    )
    if config.samples and config.engine.kind == "vllm" and config.train.device != "cpu":
        lines += gpu_memory(config, model)
    if train.has_critic:
        critic = critic_config(train, config.steps)
        itself = find(critic.model) if critic.model else model
        lines.append(
            Line(part="critic", where=lines[-1].where, what=_trainer(critic, itself, config) + "; it learns values")
        )
    for preset, _ in installed(config) if config.samples else ():
        there = "installed" if (folder(preset) / "installed").exists() else "will be installed"
        what = f"{preset.name}: {', '.join((*preset.python, *preset.npm))}; {there}"
        lines.append(Line(part="agent", where="this machine", what=what))
    for box, tasks, size in pool_sizes(config) if config.samples else ():
        whose = f", for {', '.join(tasks)}" if config.tasks or "/" in tasks[0] else ""
        kind_of_box = (
            f"{size} at most, each of its task's own image and limits"
            if own_boxes(config, tasks)
            else f"{size} of {box.image_name}, {box.cpus:g} cpus, "
            f"{units.show_size(box.memory_bytes)} each ({units.show_size(size * box.memory_bytes)} at most)"
        )
        lines.append(
            Line(part="sandboxes", where="this machine", what=f"{kind_of_box}, network {box.network_text}{whose}")
        )
    if data is not None and config.data is not None:
        lines.append(
            Line(
                part="data",
                where="controller",
                what=f"{len(data)} examples of {config.data.path}, {config.data.batch} a step, "
                f"{steps * config.data.batch / len(data):.1f} passes; {len(data.held_out)} held out",
            )
        )
    elif config.replay:
        lines.append(Line(part="replay", where="controller", what=f"the recorded steps of {Recorded(config).path}"))
    else:
        lines.append(
            Line(
                part="rollout",
                where="controller",
                what=f"{rollout.groups} groups × {rollout.episodes} episodes a step, {batch * steps} in all, "
                f"{rollout.concurrency} at once, on {cores} cores",
            )
        )
    lines += mixture(config, with_agent)
    if config.samples and config.eval.episodes:
        when = f"every {config.eval.every} steps, " if config.eval.every else ""
        lines.append(
            Line(
                part="evaluation",
                where="controller",
                what=f"{config.eval.episodes} held-out tasks before, {when}and after; "
                f"temperature {config.eval.temperature:g}",
            )
        )
    told = [name for name in config.track if name != "tensorboard"]
    told += [f"Prometheus at {config.metrics.prometheus}"] if config.metrics.prometheus else []
    told += [f"traces to {config.metrics.otlp}"] if config.metrics.otlp else []
    if told:
        lines.append(Line(part="metrics", where="controller", what=", ".join(told)))
    return lines


def _by(crew: Crew | None) -> str:
    if isinstance(crew, TeamConfig):
        order = "together" if crew.order == "together" else "in turn"
        return f"worked on by {', '.join(crew.agents)}, {order}"
    return "stepped by an agent program" if crew else "stepped by rockroll"


_EXAMPLE = 80 << 30
"""A GPU that the memory is told for where none is here."""


def gpu_memory(config: RunConfig, model: Model) -> list[Line]:
    """How one GPU is divided between trainer and engine. Nothing of a model that is yet to be fetched."""
    teacher = find(config.train.teacher, "train teacher") if config.train.teacher else None
    if any(one is not None and (one.folder is None or one.todo) for one in (model, teacher)):
        return []
    gpu = gpu_bytes() if on_gpu(config.engine) else 0
    if not gpu and not config.engine.device.startswith("cuda") and config.engine.dtype == "float32":
        return []  # a CPU's recipe on a CPU
    try:
        assert model.folder is not None
        made = computed(config, model.folder, gpu or _EXAMPLE, teacher.folder if teacher else None)
        what = str(made)
        if config.engine.gpu_share is not None:
            what += f"; the recipe's gpu_share is {config.engine.gpu_share:g}, the one computed {made.share:g}"
    except UsageError as error:
        what = error.message
    return [Line(part="GPU memory", where="this machine" if gpu else "no GPU is here", what=what)]


def mixture(config: RunConfig, with_agent: Mapping[str, Any]) -> list[Line]:
    """One line for each of several tasks, or for the levels of one: its share of the groups and of the held-out set."""
    if not config.tasks and not any(task.levels for task in config.domains):
        return []
    part = shares(config.domains)
    held = Counter(each.task for each in held_out(config.domains, config.eval.episodes))
    lines = []
    for task in config.domains:
        name, groups = task.label, part[task.label] * config.rollout.groups
        by = "an agent program" if name in with_agent else "rockroll"
        levels = f", {len(task.levels)} levels" if task.levels else ""
        what = f"{task.env}, by {by}{levels}: {part[name]:.1%}, {groups:.3g} groups a step"
        what += f", {held[name]} held-out tasks" if held else ""
        lines.append(Line(part=f"task {name}", where="controller", what=what))
    if (curriculum := config.rollout.curriculum) is not None:
        low, high = curriculum.window
        what = f"{curriculum.among} with a pass rate from {low:.0%} to {high:.0%} are drawn {curriculum.boost:g} times"
        lines.append(Line(part="curriculum", where="controller", what=f"{what} as often as others"))
    return lines


def _trainer(train: TrainConfig, model: Model, config: RunConfig) -> str:
    """How it learns, what each process holds, and the longest batch that is tried before step 1."""
    said = f"DeepSpeed ZeRO {train.zero_stage}, {train.dtype}, lr {train.lr:g}"
    if train.lora is not None:
        said += f", an adapter of rank {train.lora.rank}"
    if model.folder is None or model.todo:  # nothing is known of it yet
        return said
    parameters = parameters_of(model.folder)
    said += f"; {parameters:,} parameters"
    held = state_bytes(parameters, train, adapter_parameters(model.folder, train))
    said += f": {units.show_size(held)} of weights, gradients and optimizer each"
    longest = min(filter(None, (config.engine.context_length, context_of(model.folder))), default=0)
    if longest:
        rows, length = widest(longest, train.tokens_per_microbatch)[0]
        said += f", and activations of {rows} × {length} tokens at most"
    return said


def _beside(config: RunConfig) -> str:
    """The second model that the objective needs."""
    train = config.train
    if train.objective == "distill":
        return f", beside the teacher {find(train.teacher, 'train teacher')}"
    return ", beside a frozen copy" if train.has_reference else ""


def as_json(config: RunConfig) -> dict[str, Any]:
    """The plan and the resolved recipe as plain values."""
    return {"recipe": dump(config), "parts": [asdict(line) for line in plan(config)]}
