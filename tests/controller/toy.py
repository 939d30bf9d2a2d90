"""A whole run whose policy is a hash: the real loop, rollout, ledger and run directory, with weights of 16 bytes.

Whatever is trained, and with which weights it was sampled, is in the weights after it, and in every row. `python -m
tests.controller.toy FOLDER` is such a run as a process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from rockroll.append import unwritable
from rockroll.controller import collect, loop
from rockroll.controller.canary import Canary
from rockroll.controller.config import CheckpointConfig, EvalConfig, RecordsConfig, RunConfig
from rockroll.controller.parts import Parts
from rockroll.controller.run_dir import RunDir
from rockroll.engine.api import EngineInfo, GenerateRequest, Generation, Loaded
from rockroll.observe.display import Display, Status
from rockroll.recipe.load import dump
from rockroll.rollout.config import RedundancyConfig, RolloutConfig, TaskConfig
from rockroll.rollout.journal import Journal
from rockroll.rollout.ledger import Ledger
from rockroll.rollout.runner import Rollout
from rockroll.rollout.tokenizer import ChatTokenizer
from rockroll.train import folder
from rockroll.train.api import Exported, StepReport, TrainBatch, TrainerInfo
from rockroll.train.config import TrainConfig

START = "0" * 32


def mixed(*what: Any) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=16).hexdigest()


def number(*what: Any) -> int:
    return int(mixed(*what)[:8], 16)


class Walk:
    """Ends when the answer says so, or after a number of turns that few reach."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.seed, self.turn = seed, 0
        return f"task {seed}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        fate = number(self.seed, action, self.turn)
        return f"{fate % 10}", float(fate % 2), fate % 3 > 0 or self.turn == 6, False, {}


class Engine:
    """A token a turn of the event loop, drawn by (weights, prompt, seed): `steady` with those at the call's start."""

    def __init__(self, tokenizer: ChatTokenizer, pause: float = 0.0) -> None:
        self.weights, self.version = START, 0
        self._stop, self._pause = tokenizer.stop_ids[0], pause
        self.draw: Callable[[GenerateRequest], Any] = lambda request: request.seed

    async def generate(self, request: GenerateRequest, *_: Any) -> Generation:
        ids, versions = [], []
        seed = self.draw(request)
        while not ids or (ids[-1] != self._stop and len(ids) < request.max_tokens):
            await asyncio.sleep(self._pause)
            fate = number(self.weights, request.prompt_ids, seed, len(ids))
            ids.append(self._stop if fate % 6 == 0 else 65 + fate % 26)
            versions.append(self.version)
        return Generation(token_ids=ids, logprobs=[-1.0] * len(ids), versions=versions, finish_reason="stop")

    def counts(self) -> dict[str, float]:
        return {}

    async def load(self, path: str, version: int, digest: str = "") -> Loaded:
        self.weights, self.version = (Path(path) / "weights").read_text(), version
        return Loaded(version=version, tensors=1, digest=self.weights)

    async def logprobs(self, ids: list[int]) -> list[float]:
        return [number(self.weights, each) / 2**32 for each in ids[1:]]

    async def info(self) -> EngineInfo:
        return EngineInfo(model="", context_length=4096, vocab_size=320, version=self.version, stop_ids=[], pid=1)


class Trainer:
    """Weights that are a hash of every batch so far."""

    def __init__(self, pause: float = 0.0) -> None:
        self.weights, self.version, self._pause = START, 0, pause
        self.trained: list[list[Any]] = []

    async def step(self, batch: TrainBatch) -> StepReport:
        await asyncio.sleep(self._pause)
        said = [(s.ids, s.versions, s.reward) for s in batch.samples]
        self.weights, self.version = mixed(self.weights, said), self.version + 1
        return StepReport(version=self.version, metrics={"loss/policy": number(self.weights) / 2**32})

    async def export(self, path: str) -> Exported:
        self._write(Path(path))
        return Exported(version=self.version, tensors=1, digest=self.weights)

    async def save(self, path: str) -> None:
        self._write(Path(path))

    async def load(self, path: str) -> int:
        self.weights = (Path(path) / "weights").read_text()
        self.version = int((Path(path) / "version").read_text())
        return self.version

    async def logprobs(self, ids: list[int]) -> list[float]:
        return [number(self.weights, each) / 2**32 for each in ids[1:]]

    async def info(self) -> TrainerInfo:
        return TrainerInfo(model="", version=self.version, parameters=0, ranks=1, pids=[1])

    def _write(self, path: Path) -> None:
        try:
            partial = folder.aside(path)
            (partial / "model").mkdir()
            (partial / "model" / "config.json").write_text("{}")
            (partial / "weights").write_text(self.weights)
            (partial / "version").write_text(str(self.version))
            folder.put(partial, path)
        except OSError as error:
            raise unwritable(path, error) from None


class Guarded:
    """Stands in for the processes of a run that has none."""

    async def guard(self, work: Any) -> Any:
        return await work

    def bound_logs(self, most: int | None) -> None:
        """There are none."""


def config(**changes: Any) -> RunConfig:
    every, keep = changes.pop("every", 3), changes.pop("checkpoints", 2)
    steps, deterministic = changes.pop("steps", 7), changes.pop("deterministic", False)
    replay, records = changes.pop("replay", ""), changes.pop("records", RecordsConfig())
    wanted = {"groups": 2, "episodes": 2, "max_tokens": 12, "episode_timeout": 0} | changes
    return RunConfig(
        name="toy",
        steps=steps,
        deterministic=deterministic,
        replay=str(replay),
        records=records,
        task=TaskConfig(env=f"{__name__ if __name__ != '__main__' else 'tests.controller.toy'}:Walk"),
        rollout=RolloutConfig(**wanted),
        eval=EvalConfig(episodes=3, every=4),
        checkpoint=CheckpointConfig(every=every, keep=keep),
        train=TrainConfig(worst_case_step=False),  # a hash has none
    )


class Run:
    """One run of `config` in a folder; goes on with what is there."""

    def __init__(self, config: RunConfig, path: Path, tokenizer: ChatTokenizer, pause: float = 0.0) -> None:
        self.config, self.path, self.tokenizer = config, path, tokenizer
        self.engine, self.trainer = Engine(tokenizer, pause), Trainer(pause)
        self.watch: Callable[[Ledger], None] = lambda ledger: None
        self.told = False
        """Whether the run hears its episodes' events; what its rows count of them is since the process began."""

    @asynccontextmanager
    async def parts(
        self, config: RunConfig, run: RunDir, on_event: Any, *, train: bool, data: None = None, ray: str = ""
    ) -> AsyncIterator[Parts]:
        canary = Canary([[1, 2, 3]], config.canary, run.path / "canary.json")
        made: Any = dict(processes=Guarded(), trainer=self.trainer, critic=None, deck=None, canary=canary)
        made |= {"weights": run.weights}
        if not config.samples:
            yield Parts(**made, engine=None, rollout=None, ledger=None)
            return
        with ExitStack() as stack:
            ledger = stack.enter_context(Ledger(run.ledger, run.last_step)) if train else None
            if ledger:
                self.watch(ledger)
            events = on_event if self.told else lambda _: None
            async with (
                Journal(run.path / "journal", "off") as journal,
                Rollout(
                    config.rollout, self.engine, {}, config.domains, None, self.tokenizer, seed=3, events=events,
                    journal=journal,
                ) as rollout,
            ):  # fmt: skip
                yield Parts(**made, engine=self.engine, rollout=rollout, ledger=ledger)

    async def collect(self) -> int:
        """Batches without a trainer."""
        with RunDir(self.path, resume=(self.path / "recipe.yaml").exists()) as run:
            (run.path / "recipe.yaml").write_text(dump(self.config))
            before, collect.parts = collect.parts, self.parts
            try:
                return await collect.collect(self.config, run, Display(Status("toy", self.config.steps)))
            finally:
                collect.parts = before

    async def go(self) -> loop.Summary:
        whole = (self.path / "recipe.yaml").exists()
        with RunDir(self.path, resume=whole) as run:
            (run.path / "recipe.yaml").write_text(dump(self.config))
            before, loop.parts = loop.parts, self.parts
            try:
                return await loop.train(self.config, run, Display(Status("toy", self.config.steps)))
            finally:
                loop.parts = before


def rows(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, but for what the clock says."""
    said = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in said]


def trained(path: Path) -> list[tuple[int, str, int, int, int]]:
    """(step, task, seed, group, index) of every episode that was trained."""
    found = []
    for file in sorted((path / "episodes").glob("train-*.jsonl")):
        for each in map(msgspec.json.decode, file.read_bytes().splitlines()):
            found.append((int(file.stem[6:]), each["task"], each["seed"], each["group"], each["index"]))
    return found


def main() -> None:
    at, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    redundancy = RedundancyConfig(**options.pop("redundancy", {}))
    pause = options.pop("pause", 0.0)
    tokenizer = ChatTokenizer(options.pop("model"))
    print("begun", flush=True)
    asyncio.run(Run(config(redundancy=redundancy, **options), at, tokenizer, pause).go())
    os._exit(0)


if __name__ == "__main__":
    main()
