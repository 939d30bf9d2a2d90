"""One rank that loads checkpoints of other layouts, saves each again, and trains on: `layout_worker.py WORK RANK`.

WORK: JSON of `Work`. What was saved is FOLDER/LAYOUT by who began, FOLDER/LOADED > LAYOUT by who went on.
"""

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from rockroll import child
from rockroll.train.api import TrainBatch
from rockroll.train.config import TrainConfig
from rockroll.train.trainer import RankTrainer


class Work(msgspec.Struct):
    train: TrainConfig
    batches: list[TrainBatch]
    """The last one is trained after loading, the others before saving."""
    begin: list[int]
    """Stages that train and save."""
    go_on: list[tuple[int, str]]
    """(stage, folder to load)"""
    folder: str


def name(config: TrainConfig) -> str:
    return f"{config.ranks}-{config.zero_stage}-{config.dtype}"


def work(given: Work, rank: int) -> dict[str, dict[str, float]]:
    """The metrics of the step after loading, by `LOADED > LAYOUT`."""
    folder = Path(given.folder)
    for stage in given.begin:
        trainer = RankTrainer(replace(given.train, zero_stage=stage), rank)  # pyright: ignore[reportArgumentType]
        for batch in given.batches[:-1]:
            trainer.step(batch)
        trainer.save(str(folder / name(trainer.config)))
    found = {}
    trainers: dict[int, RankTrainer] = {}
    for stage, source in given.go_on:
        if stage not in trainers:
            trainers[stage] = RankTrainer(replace(given.train, zero_stage=stage), rank)  # pyright: ignore[reportArgumentType]
        trainer = trainers[stage]
        title = f"{source} > {name(trainer.config)}"
        trainer.load(str(folder / source))
        trainer.save(str(folder / title))
        found[title] = trainer.step(given.batches[-1]).metrics
        trainer.save(str(folder / f"{title} + 1"))
    return found


if __name__ == "__main__":
    given, rank = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Work), int(sys.argv[2])
    found = work(given, rank)
    if rank == 0:
        Path(sys.argv[1]).with_suffix(".found").write_bytes(msgspec.json.encode(found))
    child.leave(0)  # as a rank of a run does: gloo's threads abort a process that ends in order, now and then
