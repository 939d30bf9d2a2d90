"""`python -m rockroll.tiny`: makes the tiny model where it is missing or out of date.

In: --out DIR (default $ROCKROLL_HOME/models/tiny), --force. Out: the model folder, with a stamp that names the sources
it was made from. Leaves the making to model.py.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

from rockroll import home
from rockroll.errors import RockrollError

STAMP = "made-from.txt"
os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # read when torch is loaded: spinning threads took four times as long


def sources() -> str:
    """A digest of every file that the model depends on, and of the versions that compute it."""
    import torch
    import transformers

    root = Path(__file__).parents[1]
    files = [
        *sorted((root / "tiny").glob("*.py")),
        *sorted((root / "env").glob("*.py")),
        root / "agent/shell_agent.py",
        root / "data/shell.py",
    ]
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rockroll.tiny", description="Make the quick start's model.")
    parser.add_argument("--out", type=Path, default=None, help="folder; default: $ROCKROLL_HOME/models/tiny")
    parser.add_argument("--force", action="store_true", help="make it even where it is up to date")
    arguments = parser.parse_args()
    folder: Path = (arguments.out or home.models_dir() / "tiny").absolute()
    stamp, wanted = folder / STAMP, sources()
    if not arguments.force and stamp.exists() and stamp.read_text().strip() == wanted:
        print(f"the tiny model is there: {folder}")
        return 0
    from rockroll.tiny.model import make

    print(f"making the tiny model in {folder} (about a minute)")
    begun = time.monotonic()
    try:
        make(folder)
    except RockrollError as error:
        print(f"rockroll: {error}", file=sys.stderr)
        return 1
    stamp.write_text(wanted + "\n")
    print(f"made in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
