"""A trainer's ranks, wherever they are.

In: its configuration and a place for each rank. Out: a TrainerClient whose checkpoints and exported weights are folders
of this machine, whichever machines write or read them. Leaves carrying folders to placement/, what is in them to
train/.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from rockroll import rpc
from rockroll.append import unwritable
from rockroll.errors import RockrollError
from rockroll.placement.local import Place, Processes
from rockroll.placement.needs import Needs
from rockroll.train import folder
from rockroll.train.api import Exported
from rockroll.train.client import TrainerClient, ranks_of
from rockroll.train.config import TrainConfig


class PlacedTrainer(TrainerClient):
    """Made by `start`; belongs to one event loop."""

    def __init__(self, clients: Sequence[rpc.Client], places: Sequence[Place], config: TrainConfig) -> None:
        super().__init__(clients)
        self._places, self._apart = places, config.apart

    @classmethod
    async def start(
        cls, name: str, config: TrainConfig, needs: dict[str, Needs], processes: Processes
    ) -> PlacedTrainer:
        """Starts every rank, NAME-R, with its configuration in a JSON file beside its log. They load their model from
        now on: the first call waits for them. config: with the model's and the teacher's folder on this machine."""
        names = [f"{name}-{rank}" for rank in range(config.ranks)]
        places = await asyncio.gather(*(processes.place(each, needs.get(each, Needs())) for each in names))
        config = dataclasses.replace(
            config,
            address=",".join(place.address for place in places),
            rendezvous=processes.meeting(name, places),
            apart=len({place.machine for place in places}) > 1,
        )
        models = {"model": config.model} | ({"teacher": config.teacher} if config.teacher else {})
        for rank, place in enumerate(places):
            found = {key: await place.reads(path, keep=True) for key, path in models.items()}
            own = dataclasses.replace(config, key=place.their_key, **found)
            await place.start("rockroll.train.server", own, "--rank", str(rank))
        key = next((place.key for place in places if place.key is not None), None)
        return cls(await ranks_of(config, key), places, config)

    async def export(self, path: str) -> Exported:
        first = self._places[0]
        exported = (await self._each("export", [place.writes(path) for place in self._places], Exported | None))[0]
        assert exported is not None  # rank 0 always says what it wrote
        first.wrote(path)
        return exported

    async def save(self, path: str) -> None:
        if all(place.here for place in self._places):
            return await super().save(path)
        writers = self._places if self._apart else self._places[:1]
        parts = [f"{path}.rank-{rank if self._apart else 0}.partial" for rank in range(len(self._places))]
        await self._each("save", [p.writes(part) for p, part in zip(self._places, parts, strict=True)], type(None))
        target = Path(path)
        try:
            whole = folder.aside(target)
            for place, part in zip(writers, parts, strict=False):
                got = Path(f"{part}.here.partial")
                shutil.rmtree(got, ignore_errors=True)  # left by a run that was killed
                await place.bring(part, got)
                await asyncio.to_thread(_merge, got, whole)
            await asyncio.to_thread(folder.put, whole, target, durable=True)
        except OSError as error:
            raise unwritable(target, error) from error

    async def load(self, path: str) -> int:
        found = await asyncio.gather(*(place.reads(path) for place in self._places))
        return (await self._each("load", found, int))[0]


def _merge(part: Path, whole: Path) -> None:
    """Moves a rank's files into the checkpoint; each has names of its own."""
    for file in [each for each in part.rglob("*") if each.is_file()]:
        target = whole / file.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise RockrollError(f"two ranks of the trainer wrote {file.name} of the checkpoint {whole}")
        file.rename(target)
    shutil.rmtree(part)
