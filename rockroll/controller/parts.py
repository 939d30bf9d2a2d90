"""Everything a run stands on, started together and ended together.

In: a RunConfig and a run directory. Out: `Parts`: engine, trainer, rollout, ready to work; at the end no process,
sandbox or socket of the run is left. Leaves what they do to the loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rockroll.agent.install import build_image, install
from rockroll.append import write_whole
from rockroll.controller.boxes import installed, pool_sizes
from rockroll.controller.config import RunConfig
from rockroll.controller.model_path import prepare
from rockroll.controller.replicas import open_pool
from rockroll.controller.run_dir import RunDir
from rockroll.data.source import DataSet, Deck
from rockroll.engine.kinds import require
from rockroll.engine.pool import EnginePool
from rockroll.errors import ProcessDied
from rockroll.placement.local import Processes
from rockroll.rollout.curriculum_log import CurriculumLog
from rockroll.rollout.episode import Boxes
from rockroll.rollout.journal import Journal
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Event
from rockroll.rollout.tasks import brings_boxes
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.sandbox import node_client
from rockroll.sandbox.container.podman import PodmanService
from rockroll.sandbox.on_demand import OnDemand
from rockroll.sandbox.pool import Pool
from rockroll.train.api import TrainerInfo
from rockroll.train.client import TrainerClient
from rockroll.train.config import TrainConfig
from rockroll.train.critic import critic_config
from rockroll.train.teacher import check_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop works with."""

    processes: Processes
    engine: EnginePool | None
    """None where nothing is sampled: a data set is learnt from, and no task evaluates it."""
    trainer: TrainerClient | None
    critic: TrainerClient | None
    """Where the algorithm has one."""
    rollout: Rollout | None
    """None where there is no engine."""
    deck: Deck | None
    """The data set, where one is learnt from."""
    ledger: Ledger | None
    """Where episodes are sampled to be learnt from: what was begun since the checkpoint."""
    canary_ids: list[int]


@asynccontextmanager
async def parts(
    config: RunConfig, run: RunDir, on_event: Callable[[Event], None], *, train: bool, data: DataSet | None = None
) -> AsyncIterator[Parts]:
    """Starts what `config` needs, the slow ones side by side; ends all of it, whatever happened.

    train: False leaves the trainer out, for an evaluation. data: what is learnt from, where that is a data set.
    """
    if config.samples:
        require(config.engine)
    model = str(await asyncio.to_thread(prepare, config.model))
    teacher = await asyncio.to_thread(_teacher, config, model) if train else config.train.teacher
    style = config.rollout
    tokenizer = ChatTokenizer(model, calls=style.tool_calls, reasoning=style.reasoning, options=style.template)
    async with AsyncExitStack() as stack:
        keeps = train and data is None and not config.replay
        ledger = stack.enter_context(Ledger(run.ledger, run.last_step)) if keeps else None
        processes = await stack.enter_async_context(Processes(run.logs))
        engine_config = dataclasses.replace(
            config.engine,
            model=model,
            seed=config.seed,
            deterministic=config.deterministic,
        )
        engine = None
        if config.samples:
            engine = await open_pool(engine_config, run.logs, processes)
            stack.push_async_callback(engine.close)
        train_config = dataclasses.replace(
            config.train,
            model=model,
            address=processes.address("trainer-{rank}"),
            rendezvous=f"file://{processes.runtime / 'rendezvous'}",
            seed=config.seed,
            deterministic=config.deterministic,
            threads=config.train.threads or int(config.deterministic),
            teacher=teacher,
            schedule_updates=config.train.schedule_updates
            or config.steps * config.train.epochs * config.train.minibatches,
        )
        critic_config = _critic(train_config, config.steps, processes) if train and train_config.has_critic else None
        if train:
            await _ranks("trainer", train_config, run, processes)
        if critic_config is not None:
            await _ranks("critic", critic_config, run, processes)
        pools = await stack.enter_async_context(_boxes(config, processes))
        trainer = None
        if train:
            trainer = await TrainerClient.connect(train_config)
            stack.push_async_callback(trainer.close)
        critic = None
        if critic_config is not None:
            critic = await TrainerClient.connect(critic_config)
            stack.push_async_callback(critic.close)
        context = await processes.guard(_ready(engine, trainer, critic))
        deck = Deck(data, tokenizer, context=context) if data else None
        canary_ids = tokenizer.encode(config.canary.prompt)
        if engine is None:
            yield Parts(
                processes=processes,
                engine=None,
                trainer=trainer,
                critic=critic,
                rollout=None,
                deck=deck,
                ledger=None,
                canary_ids=canary_ids,
            )
            return
        journal = await stack.enter_async_context(
            Journal(run.path / "journal", config.rollout.journal, config.rollout.journal_most())
        )
        curriculum = CurriculumLog(run.path / "curriculum.jsonl")
        stack.callback(curriculum.close)
        rollout = Rollout(
            config.rollout,
            engine,
            pools,
            config.domains,
            config.agent,
            tokenizer,
            seed=config.seed,
            address=processes.address("relay"),
            events=on_event,
            journal=journal,
            curriculum=curriculum,
        )
        await stack.enter_async_context(rollout)
        yield Parts(
            processes=processes,
            engine=engine,
            trainer=trainer,
            critic=critic,
            rollout=rollout,
            deck=deck,
            ledger=ledger,
            canary_ids=canary_ids,
        )


def _teacher(config: RunConfig, model: str) -> str:
    """The teacher's folder, "" for none. Raises UsageError or TrainError before anything is started."""
    if not config.train.teacher:
        return ""
    teacher = str(prepare(config.train.teacher, "train teacher"))
    check_tokenizer(model, teacher)
    return teacher


def _critic(policy: TrainConfig, steps: int, processes: Processes) -> TrainConfig:
    """The critic beside this policy, with addresses of its own."""
    return dataclasses.replace(
        critic_config(policy, steps),
        address=processes.address("critic-{rank}"),
        rendezvous=f"file://{processes.runtime / 'rendezvous-critic'}",
    )


async def _ranks(name: str, config: TrainConfig, run: RunDir, processes: Processes) -> None:
    """The processes of one trainer."""
    file = _written(run, name, config)
    for rank in range(config.ranks):
        await processes.start(f"{name}-{rank}", "rockroll.train.server", "--config", file, "--rank", str(rank))


async def _ready(engine: EnginePool | None, *trainers: TrainerClient | None) -> int:
    """All have loaded their model; the policy's context. An error of any is a death that `guard` tells of."""
    infos = await asyncio.gather(
        *(trainer.info() for trainer in trainers if trainer), *([engine.info()] if engine else [])
    )
    first = infos[0] if infos else None
    return first.context if isinstance(first, TrainerInfo) else 0


@asynccontextmanager
async def _boxes(config: RunConfig, processes: Processes) -> AsyncIterator[dict[str, Boxes]]:
    """The run's sandboxes, by task. Should the node that holds them die, the run ends, and another node clears up after
    it."""
    sizes = pool_sizes(config) if config.samples else []
    if not sizes:
        yield {}
        return
    for preset, in_image in installed(config):
        await install(preset, _log.info)
        if in_image:
            async with PodmanService() as podman:
                await build_image(podman, preset, _log.info)
    node = await node_client.connect_node()
    lost = False

    def on_lost() -> None:
        nonlocal lost
        lost = True
        log = node_client.log_path()
        processes.fail(ProcessDied(f"the sandbox node died; the end of {log}:\n{node_client.log_tail()}", name="node"))

    node.on_lost = on_lost
    try:
        async with AsyncExitStack() as stack:
            pools: dict[str, Boxes] = {}
            environments = {task.label: task.env for task in config.domains}
            for box, tasks, size in sizes:
                warm = [task for task in tasks if not brings_boxes(environments[task])]
                if warm:
                    pools |= dict.fromkeys(warm, await stack.enter_async_context(Pool(box, size)))
                pools |= {task: OnDemand(box) for task in tasks if task not in warm}
            yield pools
    finally:
        node.on_lost = None
        if lost:
            await node_client.connect_node()  # a new node removes what the dead one left
        await node_client.close_node()


def _written(run: RunDir, name: str, config: Any) -> str:
    """A process's configuration as a JSON file in the run directory; its path."""
    path = run.logs / f"{name}.json"
    write_whole(path, json.dumps(dataclasses.asdict(config), indent=1).encode())
    return str(path)
