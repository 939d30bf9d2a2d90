"""A process that answers at once though every processor is busy, and takes no more of them for it.

In: a pid. Out: its scheduler slice made short, in Linux 6.12 and later; nothing where the kernel knows no such thing.
Leaves how much it may use to its cgroup.

Who asks for a short slice is let on when it wakes, before those who ask for long ones, and is sent off sooner: the
share is the same. It is not inherited: what the process starts has the usual slice.
"""

from __future__ import annotations

import ctypes
import os
import struct

SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
SCHED_FLAG_RESET_ON_FORK = 0x01
SLICE_NS = 100_000
"""The shortest that the kernel takes."""
_libc = ctypes.CDLL(None, use_errno=True)
_ATTR = struct.Struct("=IIQiIQQQII")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max."""


def prompt(pid: int) -> None:
    """Makes the slice of a thread short (0: this one); it must run under the usual policy at the usual nice value."""
    call = SYS_SCHED_SETATTR.get(os.uname().machine)
    if call is not None:
        attr = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, SCHED_FLAG_RESET_ON_FORK, 0, 0, SLICE_NS, 0, 0, 0, 0)
        _libc.syscall(call, pid, attr, 0)
