"""Episodes that are one line of tokens from start to end: the only ones that GAE can walk back along.

In: a batch. Out: the batch without branched episodes, and how many those were. Pure, no torch. Leaves why an episode
branches (an agent that edits its history) to rollout/transcript.py.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from rockroll.errors import TrainError
from rockroll.train.api import TrainBatch


def unbranched(batch: TrainBatch) -> tuple[TrainBatch, int]:
    """(the batch without episodes of two or more branches that are trained, how many of those there were).

    In a branched episode a token has more than one successor, and its value no single target. A branch of which
    nothing is trained does no harm, and is left out alone. Raises TrainError where nothing remains.
    """
    trained = Counter(sample.episode for sample in batch.samples if any(sample.mask))
    kept = [sample for sample in batch.samples if any(sample.mask) and trained[sample.episode] == 1]
    branched = sum(count > 1 for count in trained.values())
    if not kept and branched:
        raise TrainError(
            f"step {batch.step}: all {branched} episodes are branched, and GAE needs one line of tokens from start to "
            "end; use an agent that only adds to its conversation, or train algorithm: dapo, which takes branches"
        )
    return msgspec.structs.replace(batch, samples=kept), branched
