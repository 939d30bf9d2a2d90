"""What each row's tokens weigh in the loss, so that the sum over all of them is the aggregate wanted.

In: how many tokens of each row count, and which episode it is of, for all rows of one update on all ranks. Out: one
weight per row. Denominators are global because every rank computes them from all rows. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rockroll.train.algorithm import Aggregation
from rockroll.train.batch import Row
from rockroll.train.config import TrainConfig


def aggregate(rows: Sequence[Row], config: TrainConfig) -> None:
    """Set `weight` of these rows, all that one update has, by the aggregation of the recipe."""
    assert config.aggregation is not None
    weights = row_weights(
        [row.counted for row in rows],
        [row.episode for row in rows],
        kind=config.aggregation,
        length=config.aggregation_length,
    )
    for row, weight in zip(rows, weights, strict=True):
        row.weight = weight


def row_weights(counts: Sequence[int], episodes: Sequence[int], *, kind: Aggregation, length: int = 0) -> list[float]:
    """The weight of every counted token of each row: Σ weight · loss over all tokens is the aggregate.

    counts: [R] tokens of each row that count (what a filter dropped does not). episodes: [R] which episode a row is
    a branch of: a sequence is an episode, its branches together. length: of constant_length, in tokens.
        token_mean              1 / all counted tokens
        sequence_mean_of_sums   1 / E                     E episodes that have a counted token
        sequence_mean_of_means  1 / (E · the episode's)
        constant_length         1 / (E · length)          Dr. GRPO, arXiv 2503.20783, section 3.2
    Returns [R]; 0 where a row has no counted token.
    """
    tokens = Counter[int]()
    for count, episode in zip(counts, episodes, strict=True):
        tokens[episode] += count
    total, sequences = sum(counts), sum(1 for count in tokens.values() if count)

    def weight(episode: int) -> float:
        if kind == "token_mean":
            return 1 / total
        if kind == "sequence_mean_of_sums":
            return 1 / sequences
        if kind == "sequence_mean_of_means":
            return 1 / (sequences * tokens[episode])
        return 1 / (sequences * length)

    return [weight(episode) if count else 0.0 for count, episode in zip(counts, episodes, strict=True)]
