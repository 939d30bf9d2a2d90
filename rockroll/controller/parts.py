"""Everything a run stands on, started together and ended together.

In: a RunConfig and a run directory. Out: `Parts`: engine, trainer, rollout, ready to work; at the end no process,
sandbox or socket of the run is left. Leaves what they do to the loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rockroll.agent.install import build_image, install
from rockroll.controller.boxes import installed, own_boxes, pool_sizes
from rockroll.controller.canary import Canary
from rockroll.controller.config import RunConfig
from rockroll.controller.model_path import prepare
from rockroll.controller.needs import needs
from rockroll.controller.one_gpu import computed, shared
from rockroll.controller.placed import PlacedTrainer
from rockroll.controller.replicas import open_pool
from rockroll.controller.run_dir import RunDir
from rockroll.data.source import DataSet, Deck
from rockroll.engine.api import Engine
from rockroll.engine.kinds import gpu_bytes, on_gpu, require
from rockroll.engine.pool import EnginePool
from rockroll.errors import ProcessDied
from rockroll.placement import handover
from rockroll.placement.local import Processes
from rockroll.rollout.curriculum_log import CurriculumLog
from rockroll.rollout.episode import Boxes
from rockroll.rollout.journal import Journal
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.runner import Rollout
from rockroll.rollout.sample import Event
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.rpc.trunk import address_through
from rockroll.sandbox import node_client, where
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container.podman import PodmanService
from rockroll.sandbox.on_demand import OnDemand
from rockroll.sandbox.pool import Pool
from rockroll.train.api import TrainerInfo
from rockroll.train.client import TrainerClient
from rockroll.train.critic import critic_config
from rockroll.train.extent import weights_bytes
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
    canary: Canary
    weights: Path
    """Through this folder the trainer's weights go to the engine."""


@asynccontextmanager
async def parts(
    config: RunConfig,
    run: RunDir,
    on_event: Callable[[Event], None],
    *,
    train: bool,
    data: DataSet | None = None,
    ray: str = "",
    seen: Callable[[Engine], Engine] | None = None,
) -> AsyncIterator[Parts]:
    """Starts what `config` needs, the slow ones side by side; ends all of it, whatever happened.

    train: False leaves the trainer out, for an evaluation. data: what is learnt from, where that is a data set. ray:
    the address of the cluster on which all this runs; "": here. seen: what the rollout asks in the engine's place.
    """
    if config.samples:
        require(config.engine)
    model = str(await asyncio.to_thread(prepare, config.model))
    teacher = await asyncio.to_thread(_teacher, config, model) if train else config.train.teacher
    style = config.rollout
    tokenizer = ChatTokenizer(model, calls=style.tool_calls, reasoning=style.reasoning, options=style.template)
    prompts = [tokenizer.encode(prompt) for prompt in config.canary.prompts]
    canary = Canary(prompts, config.canary, run.path / "canary.json")
    async with AsyncExitStack() as stack:
        keeps = train and data is None and not config.replay
        ledger = stack.enter_context(Ledger(run.ledger, run.last_step)) if keeps else None
        processes = await stack.enter_async_context(await open_processes(run.logs, ray))
        wanted = needs(config, Path(model), train=train, gpus=processes.gpus)
        await processes.reserve(wanted)
        engine_config = dataclasses.replace(
            config.engine,
            model=model,
            seed=config.seed,
            deterministic=config.deterministic,
        )
        open_share = train and not ray and config.engine.gpu_share is None and config.train.device != "cpu"
        if open_share and on_gpu(config.engine) and (gpu := gpu_bytes()):
            made = computed(config, Path(model), gpu, Path(teacher) if teacher else None)
            _log.info("GPU memory %s", made)
            engine_config = shared(engine_config, made)
        engine = None
        weights = run.weights
        if config.samples:
            if train and not ray:
                size = weights_bytes(Path(model), config.train)
                weights = stack.enter_context(handover.folder(run.weights, size))
            engine = await open_pool(engine_config, wanted["engine-0"], processes)
            stack.push_async_callback(engine.close)
        train_config = dataclasses.replace(
            config.train,
            model=model,
            seed=config.seed,
            deterministic=config.deterministic,
            threads=config.train.threads or int(config.deterministic),
            teacher=teacher,
            schedule_updates=config.train.schedule_updates
            or config.steps * config.train.epochs * config.train.minibatches,
        )
        trainer = critic = None
        if train:
            trainer = await PlacedTrainer.start("trainer", train_config, wanted, processes)
            stack.push_async_callback(trainer.close)
        if train and train_config.has_critic:
            itself = critic_config(train_config, config.steps)
            critic = await PlacedTrainer.start("critic", itself, wanted, processes)
            stack.push_async_callback(critic.close)
        pools = await stack.enter_async_context(_boxes(config, processes))
        context = await processes.guard(_ready(engine, trainer, critic))
        deck = Deck(data, tokenizer, context=context) if data else None
        rollout = None
        if engine is not None:
            journal = await stack.enter_async_context(
                Journal(run.path / "journal", config.rollout.journal, config.rollout.journal_most())
            )
            curriculum = CurriculumLog(run.path / "curriculum.jsonl")
            stack.callback(curriculum.close)
            rollout = Rollout(
                config.rollout,
                seen(engine) if seen else engine,
                pools,
                config.domains,
                config.crew,
                tokenizer,
                seed=config.seed,
                address=_relay_address(processes),
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
            canary=canary,
            weights=weights,
        )


def _relay_address(processes: Processes) -> str:
    """Where the model calls of sandboxes go: through the hub where they are in a cluster."""
    hub = where.hub()
    return processes.address("relay") if hub is None else address_through(hub.address, hub.server_key)


def _teacher(config: RunConfig, model: str) -> str:
    """The teacher's folder, "" for none. Raises UsageError or TrainError before anything is started."""
    if not config.train.teacher:
        return ""
    teacher = str(prepare(config.train.teacher, "train teacher"))
    check_tokenizer(model, teacher)
    return teacher


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
    node = await node_client.connect_here()
    lost = False

    def on_lost() -> None:
        nonlocal lost
        lost = True
        if where.hub() is not None:  # a node that is lost costs the episodes on it, a hub that is lost all of them
            processes.fail(ProcessDied("the hub of the cluster has not been heard for a minute; is it up?", name="hub"))
            return
        log = node_client.log_path()
        processes.fail(ProcessDied(f"the sandbox node died; the end of {log}:\n{node_client.log_tail()}", name="node"))

    node.on_lost = on_lost
    try:
        async with AsyncExitStack() as stack:
            pools: dict[str, Boxes] = {}
            for box, tasks, size in sizes:
                if own_boxes(config, tasks):
                    pools |= dict.fromkeys(tasks, OnDemand(box))
                    continue
                pool = await stack.enter_async_context(Pool(box, size, waits=processes.grows))
                pool.on_short = functools.partial(_short, processes, tasks[0], box)
                pools |= dict.fromkeys(tasks, pool)
            yield pools
    finally:
        node.on_lost = None
        if lost:
            await node_client.connect_here()  # a new node removes what the dead one left
        await node_client.close_node()


def _short(processes: Processes, task: str, box: SandboxConfig, count: int) -> None:
    processes.short_of(task, count, box.cpus, box.memory_bytes)


async def open_processes(logs: Path, ray: str) -> Processes:
    """Where the run's processes will be: here, or on the cluster at `ray`."""
    if not ray:
        return Processes(logs)
    from rockroll.placement.on_ray.places import Places  # Ray takes a second to import, and need not be installed

    return Places(logs, ray)
