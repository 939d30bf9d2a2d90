"""What a trainer holds, in one word."""

from rockroll.digest import Digest
from rockroll.train.trainer import RankTrainer


def digest_of(trainer: RankTrainer) -> str:
    """Of all its weights, as `Exported` says it."""
    seen = Digest()
    for name, tensor in trainer.weights():
        seen.add(name, tensor)
    return seen.hex()
