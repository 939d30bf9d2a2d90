"""How much memory this process may take and has taken, on the device that trains.

In: a device. Out: bytes; on a CPU also a bound, under which an allocation that cannot be met fails as an error in this
process instead of as a kill by the kernel. Leaves what is done about it to worst_case.py.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rockroll.available import available

_SAID = ("can't allocate memory", "out of memory", "bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether it says that memory ran out: CUDA, the CPU's allocator and Python have a type each, or none."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _SAID)
    )


@contextmanager
def bounded(device: torch.device, share: int) -> Iterator[None]:
    """Within it, this process cannot take more than its share (one of `share`) of what is available.

    A CPU's memory is promised without a look and the kernel kills whoever uses it: nobody could say why. A GPU refuses
    by itself. The bound is on private writable memory (RLIMIT_DATA), which is where tensors live.
    """
    if device.type != "cpu":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _status("VmData") + available() // share
    if before[1] != resource.RLIM_INFINITY:
        bound = min(bound, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (bound, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def begin_peak(device: torch.device) -> None:
    """From now on `peak` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of resident memory
    except OSError:  # a sandbox that hides it: the peak is then since the process's start
        pass


def peak(device: torch.device) -> int:
    """The most bytes since `begin_peak`: of tensors on a GPU, of the whole process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0
