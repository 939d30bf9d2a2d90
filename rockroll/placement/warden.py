"""The warden: a small process beside the node that outlives it, so that what the node held is never left alone.

    python -I -S warden.py NODE_DIR LOG

In: NODE_DIR/guard.json, which the node writes (guard.py). Out: a node, started when one is needed. Leaves sweeping and
adopting to the node; imports nothing but the standard library and nothing of rockroll, so that it takes 12 MB.

    {"node": [pid, birth]}   wait for that process ──► ended, and the file still names it: it was killed
                                                        ──► start a node at once, then after 1, 2, 4 … 60 s
    {"wake": unix time}      the node ended on purpose and left boxes with a time to live: start a node then
    {"wake": null}, no file  nothing is left to guard: end

One a home, by a lock on NODE_DIR/warden.lock, which holds "pid birth". SIGHUP: the file was written anew, read it.
Nothing here looks twice at anything: it sleeps on a pidfd, a signal and a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time

HELD = 3
"""Exit code where another warden has this home."""
LONGEST_PAUSE_S = 60.0
STEADY_S = 30.0
"""A node that lived this long counts as well; the next one that is killed is followed at once."""
MOST_FAILURES = 12
"""Then it gives up: some ten minutes of nodes that cannot stay. The next client starts one, and says what is wrong."""


class Warden:
    def __init__(self, folder: str, log: str) -> None:
        self.folder, self.log_path = folder, log
        self.woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, lambda *_: None)
        self.failures = 0

    def run(self) -> int:
        if not self.take_lock():
            return HELD
        while (said := self.read()) is not None:
            node = said.get("node")
            if node is not None and (pidfd := alive(*node)) is not None:
                began = time.monotonic()
                self.sleep(None, pidfd)
                os.close(pidfd)
                if time.monotonic() - began > STEADY_S:
                    self.failures = 0
                if self.read() != said or alive_now(*node):
                    continue
            if node is None:
                if said.get("wake") is None:
                    return 0
                if self.sleep(max(0.0, said["wake"] - time.time()), None):
                    continue
            elif self.failures:
                if self.failures > MOST_FAILURES:
                    self.log(f"{self.failures} nodes in a row died; no other is started")
                    return 1
                if self.sleep(min(LONGEST_PAUSE_S, 2.0 ** (self.failures - 1)), None):
                    continue
            self.failures += 1
            self.start(said)
        return 0

    def take_lock(self) -> bool:
        self.lock = os.open(f"{self.folder}/warden.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        mine = f"{os.getpid()} {birth(os.getpid())}".encode()
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, mine, 0)
        return True

    def read(self) -> dict | None:
        """What the node has said last; None where the home is gone."""
        try:
            with open(f"{self.folder}/guard.json", "rb") as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return None

    def sleep(self, seconds: float | None, pidfd: int | None) -> bool:
        """Until the process has ended, the time is over, or a signal came; whether it was the signal."""
        waiting = select.poll()
        waiting.register(self.woken, select.POLLIN)
        if pidfd is not None:
            waiting.register(pidfd, select.POLLIN)
        came = [fd for fd, _ in waiting.poll(None if seconds is None else seconds * 1000 + 1)]
        if self.woken in came:
            os.read(self.woken, 512)
        return self.woken in came

    def start(self, said: dict) -> None:
        """A node, unless a client has started one since `said`. Both hold the lock of node_client._start_lock."""
        with open(f"{self.folder}/start.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.read() != said:
                return
            self.log("the node is gone; another one is started" if said.get("node") else "a sandbox's time is over")
            ready, ready_in_node = os.pipe2(os.O_CLOEXEC)
            with open(self.log_path, "ab") as log:
                argv = [*said["command"], "--ready-fd", str(ready_in_node)]
                try:
                    node = subprocess.Popen(
                        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[ready_in_node],
                        start_new_session=True, cwd=self.folder,
                    )  # fmt: skip
                except OSError as error:
                    self.log(f"a node could not be started: {error}")
                    return
                finally:
                    os.close(ready_in_node)
            # It forks away from us; then it serves and has written the file anew, or has died and its log says why.
            node.wait()
            os.read(ready, 16)
            os.close(ready)

    def log(self, words: str) -> None:
        with open(self.log_path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING warden: {words}\n")


def birth(pid: int) -> int:
    """Start time in clock ticks; 0 where there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def alive_now(pid: int, born: int) -> bool:
    return birth(pid) == born


def alive(pid: int, born: int) -> int | None:
    """A pidfd of that very process, or None where it has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if alive_now(pid, born):
        return pidfd
    os.close(pidfd)
    return None


if __name__ == "__main__":
    sys.exit(Warden(sys.argv[1], sys.argv[2]).run())
