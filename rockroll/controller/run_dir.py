"""The directory of one run: what is in it, who may write to it, where to continue.

In: a path. Out: the resolved recipe, logs, checkpoints by step; a lock held while a run writes. Leaves the contents
of a checkpoint to the trainer and rows and records to observe/.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rockroll import home
from rockroll.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)


class RunDir:
    """RUN_DIR/{recipe.yaml, metrics.jsonl, episodes/, checkpoints/step_N/, tensorboard/, logs/, rockroll.log}.

    Use as a context: one run at a time writes there. resume: continue from the last whole checkpoint; without it the
    directory must be new or empty, so that no earlier run is overwritten.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path.absolute()
        self.resume = resume

    def __enter__(self) -> RunDir:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--run-dir is a directory; {self.path} is a file")
        used = (self.path / "recipe.yaml").exists()
        if used and not self.resume:
            raise UsageError(f"{self.path} holds a run already; continue it with --resume, or name another --run-dir")
        if self.resume and not used:
            raise UsageError(f"--resume needs the directory of an earlier run in --run-dir; {self.path} holds none")
        self.logs.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"{self.path} is being written by another rockroll; wait for it or end it") from None
        return self

    def __exit__(self, *exc: Any) -> None:
        self._lock.close()

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Where the trainer hands weights to the engine."""
        return self.path / "weights"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step}"

    def critic_checkpoint(self, step: int) -> Path:
        """Beside the policy's, which is written after it: a whole checkpoint has one where there is a critic."""
        return self.checkpoints / f"step_{step}.critic"

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, ascending; the trainer renames one into place when it is complete."""
        names = [entry.name for entry in self.checkpoints.iterdir() if (entry / "model" / "config.json").exists()]
        return sorted(int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdigit())

    @property
    def last_step(self) -> int:
        """The step to go on after: that of the last whole checkpoint of a run that is continued, or 0."""
        return (self.steps() or [0])[-1] if self.resume else 0

    def prune(self, keep: int) -> None:
        """Removes all but the last `keep` checkpoints; 0 keeps all. What a death left half written goes too."""
        for partial in self.checkpoints.glob("step_*.partial"):
            shutil.rmtree(partial)
        for step in self.steps()[:-keep] if keep else []:
            shutil.rmtree(self.critic_checkpoint(step), ignore_errors=True)
            self._position(step).unlink(missing_ok=True)
            # by another name first: what a death leaves of it is no checkpoint, and goes with the next ones
            shutil.rmtree(self.checkpoint(step).rename(self.checkpoints / f"step_{step}.partial"))

    @property
    def ledger(self) -> Path:
        """What was begun since the checkpoints."""
        return self.path / "ledger"

    def _position(self, step: int) -> Path:
        return self.checkpoints / f"step_{step}.data.json"

    def put_position(self, step: int, position: msgspec.Struct) -> None:
        """Where the examples of a data set stand at a checkpoint; written before it, so that a whole one has it."""
        self._position(step).write_bytes(msgspec.json.encode(position))

    def position(self, step: int, kind: type[T]) -> T:
        """What `put_position` said. UsageError where it cannot be read."""
        try:
            return msgspec.json.decode(self._position(step).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError) as error:
            raise UsageError(
                f"{self._position(step)} says which examples were trained, and cannot be read ({error}); remove "
                f"{self.checkpoint(step)} to continue from the checkpoint before it"
            ) from None


def default_path(name: str) -> Path:
    """$ROCKROLL_HOME/runs/NAME-TIME, not there yet."""
    stem = home.runs_dir() / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = stem, 1
    while path.exists():
        n += 1
        path = stem.with_name(f"{stem.name}-{n}")
    return path
