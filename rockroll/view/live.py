"""What changes while one looks.

In: the runs, and the kernel's word on their folders. Out: their indexes kept up to date, and a stream of server-sent
events that tell every open page which run changed, and what of it. Leaves fetching the page anew to view.js.

    a file changes ──► noted; LULL_S after the first note ──► [ index in a thread ] ──► told to every page
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rockroll.view.runs import Run, Runs, is_run
from rockroll.view.watch import Watch

_log = logging.getLogger(__name__)
LULL_S = 0.2
"""Changes come in bursts: at the end of a step, or with every episode that begins. One word is enough for each."""
TOLD_EVERY = 50
"""Files, while an index is being made."""
Place = tuple[Run | None, Path]
Change = tuple[str, str]
"""(name of the run, what of it: metrics, episodes, running, logs; "" and "runs": there is a new one)."""


class Live:
    """Between `start` and `close`; belongs to one event loop."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._listeners: set[_Listener] = set()
        self._noted: set[Change] = set()
        self._flushing: asyncio.Task[None] | None = None
        self._indexer = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._ended = False

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watch: Watch[Place] = Watch(self._changed)
        for folder in self._runs.folders:
            self._watch.add(folder, (None, folder))
            for path in folder.iterdir():
                if path.is_dir() and not is_run(path):
                    self._watch.add(path, (None, path))
        for run in self._runs:
            self._follow(run)
        self._flush_soon(0.0)

    def end(self) -> None:
        """Every stream of events ends."""
        self._ended = True
        for listener in self._listeners:
            listener.some.set()

    async def close(self) -> None:
        self.end()
        self._watch.close()
        if self._flushing:
            self._flushing.cancel()
        self._indexer.shutdown(wait=False, cancel_futures=True)

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events, until `close`."""
        mine = _Listener()
        self._listeners.add(mine)
        try:
            yield "retry: 2000\n\n"
            while not self._ended:
                await mine.some.wait()
                mine.some.clear()
                changes, mine.changes = mine.changes, set()
                if changes:
                    yield f"event: change\ndata: {json.dumps(sorted(changes))}\n\n"
        finally:
            self._listeners.discard(mine)

    def _follow(self, run: Run) -> None:
        for folder in (run.path, *(run.path / name for name in ("episodes", "running", "logs"))):
            self._watch.add(folder, (run, folder))
        self._noted.add((run.name, "episodes"))

    def _changed(self, place: Place | None, name: str) -> None:
        if place is None:  # so much happened that the kernel lost count
            self._noted |= {(run.name, what) for run in self._runs for what in ("metrics", "episodes", "running")}
        elif place[0] is None:
            self._maybe_new(place[1], name)
        else:
            run, folder = place
            assert run is not None
            if folder != run.path:
                if not name.endswith((".tmp", "-wal", "-shm", ".sqlite", "-journal")):
                    self._noted.add((run.name, folder.name))
            elif name in ("metrics.jsonl", ".lock"):
                self._noted.add((run.name, "metrics"))
            elif name == "rockroll.log":
                self._noted.add((run.name, "logs"))
            elif name in ("episodes", "running", "logs"):
                self._watch.add(folder / name, (run, folder / name))
                self._noted.add((run.name, name))
        if self._noted:
            self._flush_soon(LULL_S)

    def _maybe_new(self, folder: Path, name: str) -> None:
        """A folder among runs: a run as soon as it has a recipe."""
        if folder in self._runs.folders:
            folder = folder / name
            self._watch.add(folder, (None, folder))
        if is_run(folder):
            for run in self._runs.look():
                self._follow(run)
                self._noted.add(("", "runs"))

    def _flush_soon(self, after: float) -> None:
        if self._flushing is None and not self._ended:
            self._flushing = self._loop.create_task(self._flush(after))

    async def _flush(self, after: float) -> None:
        await asyncio.sleep(after)  # lets the burst end: nothing is waited for
        noted, self._noted = self._noted, set()
        self._tell({change for change in noted if change[1] != "episodes"})
        for name in [name for name, what in noted if what == "episodes"]:
            if run := self._runs.get(name):
                try:
                    await self._loop.run_in_executor(self._indexer, self._index, run)
                except (sqlite3.Error, OSError) as error:  # a busy index, a full disk: the next change tries it again
                    _log.warning("%s: its index was not brought up to date: %s", run.path, error)
        self._flushing = None
        if self._noted:
            self._flush_soon(LULL_S)

    def _index(self, run: Run) -> None:
        """In the indexer's thread."""
        told = False
        for done, todo in run.refreshing():
            if self._ended:
                return
            if todo and (done % TOLD_EVERY == 0 or done == todo):
                told = True
                self._loop.call_soon_threadsafe(self._tell, {(run.name, "episodes")})
        if not told:
            self._loop.call_soon_threadsafe(self._tell, {(run.name, "episodes")})

    def _tell(self, changes: set[Change]) -> None:
        for listener in self._listeners if changes else ():
            listener.changes |= changes
            listener.some.set()


class _Listener:
    """One open page."""

    def __init__(self) -> None:
        self.changes: set[Change] = set()
        self.some = asyncio.Event()
