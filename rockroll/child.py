"""The life of a process that a run started: engine, trainer.

In: a configuration file and what to serve. Out: a process that ends on SIGTERM and when its parent dies, however that
happens; an error of ours is one line on stderr and an exit code. Leaves what is served to the rooms.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from rockroll import logs
from rockroll.errors import RockrollError

C = TypeVar("C")
_PR_SET_PDEATHSIG = 1


def main(name: str, file: Path, config_type: type[C], serve: Callable[[C], Coroutine[Any, Any, None]]) -> NoReturn:
    """Reads `file` (JSON) as `config_type` and serves until the end; never returns."""
    _die_with_parent()
    # Threads that spin while they wait starve the other processes on the same cores (a training step took 100 s instead
    # of 7 on a busy machine); read by OpenMP when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the controller decides
    logs.begin()
    code = 0
    try:
        asyncio.run(serve(msgspec.json.decode(file.read_bytes(), type=config_type)))
    except RockrollError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except (OSError, msgspec.MsgspecError) as error:
        print(f"{name} config {file}: {error}", file=sys.stderr)
        code = 1
    leave(code)


def end_asked() -> asyncio.Event:
    """Set on SIGTERM and when the parent is gone. For the running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(os.pidfd_open(os.getppid()), stop.set)
    return stop


def leave(code: int) -> NoReturn:
    """Not sys.exit, nor the end of asyncio.run: both would wait for a thread in the middle of a long step."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _die_with_parent() -> None:
    """SIGTERM when the parent dies, also before the loop listens to anything."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(1)


def end_with_parent() -> None:
    """This process ends at once when the one that started it is gone: for a child that others started.

    multiprocessing ends its children when their parent ends in order; a parent that is killed, or that leaves by
    `leave`, would let them live on, each with a whole model in memory. Not PDEATHSIG: that comes when the thread ends
    that started the child.
    """
    parent = os.pidfd_open(os.getppid())

    def wait() -> None:
        select.select([parent], [], [])
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
