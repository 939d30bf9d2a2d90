"""Checkpoints: everything that continuing bit-equal needs, whole or refused.

    step_N/model/         Hugging Face layout: what `transformers`, an engine or `rockroll eval` loads
    step_N/deepspeed/     DeepSpeed's state of every rank: weights, optimizer
    step_N/rng-R.pt       torch's random state of rank R
    step_N/trainer.json   version, updates, how it was sharded, and size and hash of every other file; written last

In: a trainer and a path. Out: the folder, under its name only when complete. Leaves when to save, and what the rest
of the run needs to go on, to the controller.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from rockroll.errors import TrainError
from rockroll.train import export, folder
from rockroll.train.ranks import barrier

if TYPE_CHECKING:
    from rockroll.train.trainer import RankTrainer

_TAG = "state"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """trainer.json. The learning rate follows from `updates`, so there is no scheduler to store."""

    version: int
    updates: int
    objective: dict[str, float]
    """The objective's own state."""
    ranks: int
    zero_stage: int
    dtype: str
    files: dict[str, tuple[int, str]]
    """Relative path -> bytes, BLAKE2b."""


def save(trainer: RankTrainer, path: Path) -> None:
    """Write the checkpoint beside `path`, then give it that name. Every rank calls."""
    path = path.absolute()
    partial = path.with_name(path.name + ".partial")
    try:
        if trainer.rank == 0:
            folder.aside(path)
        barrier(trainer.config)
        trainer.engine.save_checkpoint(str(partial / "deepspeed"), tag=_TAG, save_latest=False)
        torch.save(torch.get_rng_state(), partial / f"rng-{trainer.rank}.pt")
        tensors = trainer.tensors()
        barrier(trainer.config)
        if trainer.rank == 0:
            (partial / "model").mkdir()
            export.write(partial / "model", trainer.model, tensors, trainer.source)
            record = _Record(
                version=trainer.version,
                updates=trainer.updates,
                objective=trainer.objective.state(),
                ranks=trainer.config.ranks,
                zero_stage=trainer.config.zero_stage,
                dtype=trainer.config.dtype,
                files={str(f.relative_to(partial)): _fingerprint(f) for f in sorted(partial.rglob("*")) if f.is_file()},
            )
            (partial / "trainer.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
            folder.put(partial, path, durable=True)
        barrier(trainer.config)
    except OSError as error:
        raise TrainError(f"cannot save a checkpoint to {path}: {error.strerror or error}; is there space?") from error


def load(trainer: RankTrainer, path: Path) -> None:
    """Continue from the checkpoint at `path`. Every rank calls.

    Raises TrainError, with the trainer as it was, for a checkpoint that is incomplete, damaged, or sharded otherwise.
    """
    record = read(path)
    asked = trainer.config
    for name in ("ranks", "zero_stage", "dtype"):
        if getattr(record, name) != getattr(asked, name):
            raise TrainError(
                f"checkpoint {path} was made with train {name}: {getattr(record, name)}, this run has "
                f"{getattr(asked, name)}; set it back, or start a run from {path / 'model'}"
            )
    trainer.engine.load_checkpoint(str(path / "deepspeed"), tag=_TAG)
    torch.set_rng_state(torch.load(path / f"rng-{trainer.rank}.pt", weights_only=True))
    trainer.version, trainer.updates = record.version, record.updates
    trainer.objective.restore(record.objective)


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
