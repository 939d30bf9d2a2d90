"""The trainer's ranks find each other: one process group, gloo on CPUs, NCCL on GPUs.

In: this process's rank and where to meet. Out: its device, with torch.distributed and DeepSpeed initialised, once a
process. Leaves starting the processes to placement, what they exchange to the trainer.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from rockroll.errors import TrainError
from rockroll.train.config import TrainConfig


def join(config: TrainConfig, rank: int) -> torch.device:
    """Join the group of `config.ranks` processes at `config.rendezvous`; blocks until all are there."""
    if not 0 <= rank < config.ranks:
        raise TrainError(f"train rank must be 0 to {config.ranks - 1}, as train ranks is {config.ranks}; got {rank}")
    cuda = config.device != "cpu" and torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise TrainError("train device: cuda was asked for and torch finds none; use device: auto, or cpu")
    torch.set_num_threads(config.threads or max(1, len(os.sched_getaffinity(0)) // config.ranks))
    device = torch.device("cuda", rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(device.index or 0), WORLD_SIZE=str(config.ranks))

    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile its shared-memory collective at the first start (39 s). It serves inference_all_reduce
    # alone, which no training step calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]
    if not torch.distributed.is_initialized():
        _init_group("nccl" if cuda else "gloo", config, rank)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return device


def _init_group(backend: str, config: TrainConfig, rank: int) -> None:
    if config.ranks == 1:
        store = torch.distributed.HashStore()  # nobody to meet: no file, no port
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        return
    if not config.rendezvous:
        raise TrainError(
            f"train rendezvous is needed for {config.ranks} ranks; name a file://PATH that is not there yet"
        )
    if config.rendezvous.startswith("file://"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: needs no network and no host name
    torch.distributed.init_process_group(backend, init_method=config.rendezvous, rank=rank, world_size=config.ranks)


def barrier(config: TrainConfig) -> None:
    """Wait for all ranks."""
    if config.ranks > 1:
        torch.distributed.barrier()


def gathered(config: TrainConfig, mine: dict[str, Any]) -> dict[str, Any]:
    """What every rank says, in one; their names are different ones."""
    each: list[Any] = [mine] * config.ranks
    if config.ranks > 1:
        torch.distributed.all_gather_object(each, mine)
    return {name: value for one in each for name, value in one.items()}
