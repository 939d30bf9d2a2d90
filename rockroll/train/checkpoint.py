"""Checkpoints: everything that continuing needs, whole or refused, for any number of ranks.

    step_N/model/                   Hugging Face layout, adapters merged: what `transformers` or an engine loads
    step_N/adapter/                 with train.lora: the adapter in peft's layout
    step_N/optimizer-R.safetensors  what rank R's optimizer holds: float32 weights and Adam moments, by parameter
    step_N/rng-R.safetensors        torch's random state of rank R
    step_N/trainer.json             version, updates, who wrote it, and size and hash of every other file; written last

In: a trainer and a path. Out: the folder, under its name only when complete. Leaves when to save, and what the rest
of the run needs to go on, to the controller; why the format is our own to docs/decisions/017.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from safetensors.torch import load_file

from rockroll.append import cause
from rockroll.digest import Digest
from rockroll.errors import TrainError
from rockroll.train import export, folder, lora, shards
from rockroll.train.ranks import barrier, gathered
from rockroll.train.shard_file import Saved, write_shards
from rockroll.train.tensor_file import write_tensors

if TYPE_CHECKING:
    from rockroll.train.trainer import RankTrainer

_FORMAT = 2


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """trainer.json. The learning rate follows from `updates`, so there is no scheduler to store."""

    format: int = 1
    version: int
    updates: int
    objective: dict[str, float]
    """The objective's own state."""
    ranks: int
    zero_stage: int
    dtype: str
    lora: dict[str, Any] | None = None
    base: str = ""
    """With lora: digest of the frozen weights, which are not in the checkpoint."""
    parameters: dict[str, list[int]] = {}
    """What is trained: name -> shape."""
    files: dict[str, tuple[int, str]]
    """Relative path -> bytes, BLAKE2b."""


def save(trainer: RankTrainer, path: Path) -> None:
    """Write the checkpoint beside `path`, then give it that name. Every rank calls, every rank fails where one does."""
    path = path.absolute()
    partial = path.with_name(path.name + ".partial")
    walks = [trainer.weights(), *([trainer.adapter()] if trainer.config.lora else [])]
    problem: OSError | None = None
    try:
        if trainer.rank == 0 or trainer.config.apart:
            folder.aside(path)
        if trainer.rank == 0:
            for part in ("model", "adapter")[: len(walks)]:
                (partial / part).mkdir()
    except OSError as error:
        problem = error
    barrier(trainer.config)  # the folder is there for all
    try:
        if problem is None:
            _write(trainer, partial, walks)
    except OSError as error:
        problem = error
    for walk in walks:
        walk.finish()
    if trainer.share.all(problem is None):
        files: dict[str, tuple[int, str]] = {}
        try:
            if trainer.rank == 0 or trainer.config.apart:
                files = {
                    str(f.relative_to(partial)): _fingerprint(f) for f in sorted(partial.rglob("*")) if f.is_file()
                }
        except OSError as error:
            problem = error
        if trainer.config.apart:
            files = gathered(trainer.config, files)
        try:
            if trainer.rank == 0 and problem is None:
                record = msgspec.json.encode(_record(trainer, files))
                (partial / "trainer.json").write_bytes(msgspec.json.format(record, indent=1))
            if (trainer.rank == 0 or trainer.config.apart) and problem is None:
                folder.put(partial, path, durable=True)
        except OSError as error:
            problem = error
    if not trainer.share.all(problem is None):
        if trainer.rank == 0 or trainer.config.apart:
            shutil.rmtree(partial, ignore_errors=True)  # or it would keep the disk full
        said = cause(path, problem) if problem else "another rank could not write its part"
        raise TrainError(f"cannot save a checkpoint to {path}: {said}") from problem


def _write(trainer: RankTrainer, partial: Path, walks: list[export.Walk]) -> None:
    write_shards(partial / f"optimizer-{trainer.rank}.safetensors", trainer.engine, trainer.held(writing=True))
    state = _random_state(trainer)
    write_tensors(
        partial / f"rng-{trainer.rank}.safetensors", {k: (t.dtype, t.shape) for k, t in state.items()}, state.items()
    )
    if trainer.rank == 0:
        export.write_model(partial / "model", trainer.model, walks[0], trainer.source)
        if trainer.config.lora is not None:
            lora.write_config(partial / "adapter", trainer.config.lora, trainer.model, trainer.source)
            export.write(partial / "adapter" / "adapter_model.safetensors", walks[1])


def _record(trainer: RankTrainer, files: dict[str, tuple[int, str]]) -> _Record:
    config = trainer.config
    return _Record(
        format=_FORMAT,
        version=trainer.version,
        updates=trainer.updates,
        objective=trainer.objective.state(),
        ranks=config.ranks,
        zero_stage=config.zero_stage,
        dtype=config.dtype,
        lora=_lora(trainer),
        base=_base(trainer.source) if config.lora else "",
        parameters={name: list(shards.shape_of(p)) for name, p in shards.trained(trainer.engine)},
        files=files,
    )


def load(trainer: RankTrainer, path: Path) -> None:
    """Continue from the checkpoint at `path`, whoever wrote it. Every rank calls.

    Raises TrainError, with the trainer as it was, for a checkpoint that is incomplete, damaged, or of other parameters.
    """
    record = read(path)
    _check_same(trainer, record, path)
    with Saved(sorted(path.glob("optimizer-*.safetensors"))) as saved:
        for name, p in shards.trained(trainer.engine):
            saved.check(name, torch.Size(shards.shape_of(p)).numel())
        held = trainer.held()
        shards.begin(trainer.engine, held, record.updates)
        with torch.no_grad():
            for shard in held:
                shard.of(shard.flat).copy_(saved.read("weight", shard.name, shard.start, shard.length))
                for key, moment in shards.moments(trainer.engine, shard).items():
                    moment.copy_(saved.read(key, shard.name, shard.start, shard.length))
            _fill(trainer, held, saved)
    shards.refresh(trainer.engine, trainer.config.zero_stage)
    trainer.version, trainer.updates = record.version, record.updates
    trainer.objective.restore(record.objective)
    _set_random_state(trainer, path)


def _fill(trainer: RankTrainer, held: list[shards.Shard], saved: Saved) -> None:
    """The weights of the forward from the float32 ones, rounded as DeepSpeed rounds them after an update."""
    if trainer.config.zero_stage == 3:
        for shard in held:
            shard.parameter.ds_tensor.view(-1)[: shard.length].copy_(shard.of(shard.flat))
    elif trainer.config.zero_stage:
        for name, p in shards.trained(trainer.engine):
            p.data.view(-1).copy_(saved.read("weight", name, 0, p.numel()))


def _check_same(trainer: RankTrainer, record: _Record, path: Path) -> None:
    cure = f"set it back, or start a run from {path / 'model'}"
    if record.format != _FORMAT:
        raise TrainError(
            f"checkpoint {path} has format {record.format}, this rockroll reads {_FORMAT}; start a run from "
            f"{path / 'model'}"
        )
    mine = _lora(trainer)
    if record.lora != mine:
        raise TrainError(f"checkpoint {path} was made with train lora: {record.lora}, this run has {mine}; {cure}")
    if record.lora and record.base != _base(trainer.source):
        raise TrainError(
            f"checkpoint {path} holds an adapter of other weights than those of {trainer.source}; name the model that "
            f"it was trained on, or start a run from {path / 'model'}"
        )
    shapes = {name: list(shards.shape_of(p)) for name, p in shards.trained(trainer.engine)}
    for name in sorted(record.parameters.keys() | shapes.keys()):
        if record.parameters.get(name) != shapes.get(name):
            raise TrainError(
                f"checkpoint {path} is of another model: {name} is {record.parameters.get(name, 'not')} there, "
                f"{shapes.get(name, 'not')} here; {cure}"
            )


def _lora(trainer: RankTrainer) -> dict[str, Any] | None:
    """What of an adapter's configuration its weights depend on, as JSON has it."""
    config = trainer.config.lora
    return None if config is None else msgspec.json.decode(msgspec.json.encode(asdict(config) | {"dropout": None}))


def _base(source: Path) -> str:
    """A digest of the frozen weights, as their files have them."""
    files = sorted(source.glob("model*.safetensors"))
    return _digest_of(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of all these files, read once for all checkpoints of a run: (file, bytes, when it was written)."""
    from safetensors import safe_open

    seen = Digest()
    for file, _, _ in files:
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                seen.add(name, tensors.get_tensor(name))
    return seen.hex()


def _random_state(trainer: RankTrainer) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if trainer.device.type == "cuda" else {})


def _set_random_state(trainer: RankTrainer, path: Path) -> None:
    """This rank's stream goes on; a rank that was not there before begins one of its own."""
    file = path / f"rng-{trainer.rank}.safetensors"
    if not file.is_file():
        torch.manual_seed(random.Random(f"rank/{trainer.config.seed}/{trainer.rank}/{trainer.version}").getrandbits(63))
        return
    state = load_file(file)
    torch.set_rng_state(state["cpu"])
    if trainer.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def read(path: Path) -> _Record:
    """The record of a whole checkpoint, every file checked. Raises TrainError that names what is missing or damaged."""
    cure = "use an earlier checkpoint"
    try:
        record = msgspec.json.decode((path / "trainer.json").read_bytes(), type=_Record)
    except OSError as error:
        raise TrainError(f"{path} is no complete checkpoint: it has no trainer.json; {cure}") from error
    except msgspec.DecodeError as error:
        raise TrainError(f"{path / 'trainer.json'} is damaged: {error}; {cure}") from error
    for name, expected in record.files.items():
        file = path / name
        if not file.is_file():
            raise TrainError(f"checkpoint {path} lacks {name}; {cure}")
        if _fingerprint(file) != expected:
            raise TrainError(f"checkpoint {path}: {name} is not what was saved (size or hash differ); {cure}")
    return record


def _fingerprint(file: Path) -> tuple[int, str]:
    with file.open("rb") as stream:
        return file.stat().st_size, hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
