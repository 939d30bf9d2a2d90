"""One rank that exports and prints by how many bytes its memory grew at most: MODEL FOLDER STAGE RANKS LORA RANK."""

import sys
from pathlib import Path

from rockroll import child
from rockroll.train.config import TrainConfig
from rockroll.train.lora_config import LoraConfig
from rockroll.train.trainer import RankTrainer


def resident(what: str) -> int:
    """VmRSS, now, or VmHWM, the most since `reset`; in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    model, folder, stage, ranks, rank_of_lora, rank = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    trainer = RankTrainer(
        TrainConfig(
            model=model,
            device="cpu",
            threads=1,
            ranks=ranks,
            rendezvous=f"file://{folder}/rendezvous",
            zero_stage=stage,  # pyright: ignore[reportArgumentType]
            lora=LoraConfig(rank=rank_of_lora) if rank_of_lora else None,
        ),
        rank,
    )
    for p in trainer.model.parameters():
        p.sum()  # what is mapped from the model's file is read now, or it would count as the export's
    reset()
    before = resident("VmRSS")
    trainer.export(str(folder / "out"))
    print(resident("VmHWM") - before)
    child.leave(0)  # as a rank of a run does: gloo's threads abort a process that ends in order, now and then
