"""What Podman has written down of a container that it has just started, read from its files.

In: Podman's folders, a container's id. Out: what `podman inspect` says of it, as far as a start needs it; None where
the files are not as known, for the caller to ask. Leaves the rest to podman.py: this one answer each start needs, and
asking takes Podman 3 ms of CPU time, a twelfth of the start itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def read(store: str, run: str, container: str, layer: str) -> dict[str, Any] | None:
    """State.Pid and State.ConmonPid, OCIConfigPath, GraphDriver, under their names in `podman inspect`.

    store, run: Podman's graphRoot and runRoot. layer: the container's root in the bundle's config.json, of an overlay.
    """
    overlay, folder = Path(store, "overlay"), Path(layer).parent
    if not store or folder.parent != overlay:
        return None
    here = Path(run, "overlay-containers", container, "userdata")
    try:
        pid, conmon = (int((here / name).read_text()) for name in ("pidfile", "conmon.pid"))
        parts = (folder / "lower").read_text().split(":")
        lowers = [os.path.normpath(overlay / "l" / (overlay / part).readlink()) for part in parts]
    except (OSError, ValueError):
        return None
    data = {"LowerDir": ":".join(lowers), "UpperDir": f"{folder}/diff"}
    return {
        "State": {"Pid": pid, "ConmonPid": conmon, "ExitCode": 0},
        "OCIConfigPath": config_path(store, container),
        "GraphDriver": {"Name": "overlay", "Data": data},
    }


def config_path(store: str, container: str) -> str:
    """Where the bundle's config.json is."""
    return f"{store}/overlay-containers/{container}/userdata/config.json"
