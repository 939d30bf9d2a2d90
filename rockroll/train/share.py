"""One rank's share of the rows, and what the ranks tell one another.

In: all rows of a batch, the same on every rank. Out: this rank's micro-batches; per-token values and sums that every
rank knows. Every method that talks is a collective. Leaves what is computed of a token to the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rockroll.train.batch import MicroBatch, Row, collate, padding_fraction, plan
from rockroll.train.config import TrainConfig


class Share:
    """Which rows are this rank's. Rows that belong together (`together` in a row) stay in one micro-batch."""

    def __init__(self, config: TrainConfig, rank: int, device: torch.device, *, together: int = 1) -> None:
        self.config, self.rank, self.device, self.together = config, rank, device, together

    def units(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows by what must not be parted: neighbours of each other in `rows`."""
        return [list(rows[i : i + self.together]) for i in range(0, len(rows), self.together)]

    def _plan(self, rows: Sequence[Row]) -> list[list[list[int]]]:
        """[rank][micro-batch] -> row indices."""
        lengths = [max(map(len, unit)) for unit in self.units(rows)]
        budget = max(1, self.config.tokens_per_microbatch // self.together)
        return [
            [[unit * self.together + i for unit in pack for i in range(self.together)] for pack in packs]
            for packs in plan(lengths, self.config.ranks, budget)
        ]

    def micro_batches(self, rows: Sequence[Row]) -> list[list[Row]]:
        """This rank's micro-batches; as many as every other rank's."""
        return [[rows[i] for i in pack] for pack in self._plan(rows)[self.rank]]

    def padding_fraction(self, updates: Sequence[Sequence[Row]]) -> float:
        """The share of computed tokens that are padding, over all ranks and these updates, each packed by itself."""
        tokens = [sum(map(len, rows)) for rows in updates]
        computed = [
            n / (1 - padding_fraction([len(row) for row in rows], self._plan(rows)))
            for n, rows in zip(tokens, updates, strict=True)
        ]
        return 1 - sum(tokens) / sum(computed)

    def per_token(self, model: Any, rows: Sequence[Row], read: Callable[[Tensor, MicroBatch], Tensor]) -> list[Tensor]:
        """What `read` makes of a model's outputs, without gradient: [n] float32 for each row, on every rank.

        read: (outputs [n, …], micro-batch) -> [n]. On every rank, because a later minibatch may deal a row to another.
        """
        ends = list(accumulate((len(row.targets) for row in rows), initial=0))
        starts = {id(row): start for row, start in zip(rows, ends, strict=False)}
        shared = torch.zeros(ends[-1], device=self.device)
        model.eval()
        with torch.no_grad():
            for mine in self.micro_batches(rows):
                micro = collate(mine).to(self.device)
                values = read(model(micro.inputs, micro.index), micro)
                for row, part in zip(mine, values.split([len(row.targets) for row in mine] or [1]), strict=False):
                    shared[starts[id(row)] : starts[id(row)] + len(part)] = part
        if self.config.ranks > 1:
            torch.distributed.all_reduce(shared)
        return [shared[starts[id(row)] : starts[id(row)] + len(row.targets)].cpu() for row in rows]

    def all(self, good: bool) -> bool:
        """Whether it is so on every rank."""
        if self.config.ranks == 1:
            return good
        flag = torch.tensor(float(good), device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        return bool(flag)


class Totals:
    """Sums, and largest values, by name: on this rank until `reduce`. The names are fixed, so that ranks agree."""

    def __init__(self, share: Share, sums: Iterable[str], largest: Iterable[str] = ()) -> None:
        self._share, self._sum_names, self._largest_names = share, tuple(sums), tuple(largest)
        self._sums = torch.zeros(len(self._sum_names), dtype=torch.float64, device=share.device)
        self._largest = torch.zeros(len(self._largest_names), dtype=torch.float64, device=share.device)

    def add(self, **sums: Tensor | float) -> None:
        for name, value in sums.items():
            self._sums[self._sum_names.index(name)] += value

    def most(self, **values: Tensor) -> None:
        """Keep the largest; at least 0."""
        for name, value in values.items():
            place = self._largest_names.index(name)
            self._largest[place] = torch.maximum(self._largest[place], value)

    def reduce(self) -> dict[str, float]:
        """All of them by name, over all ranks."""
        if self._share.config.ranks > 1:
            torch.distributed.all_reduce(self._sums)
            if self._largest_names:
                torch.distributed.all_reduce(self._largest, torch.distributed.ReduceOp.MAX)
        names = self._sum_names + self._largest_names
        return dict(zip(names, self._sums.tolist() + self._largest.tolist(), strict=True))
