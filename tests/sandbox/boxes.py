"""A box straight from the profile, for tests below the node."""

from __future__ import annotations

import subprocess
import uuid
from typing import NamedTuple

from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.container import profile, runtime
from rockroll.sandbox.container.podman import Podman


class Box(NamedTuple):
    id: str
    name: str
    pid: int

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A process in the box, by the OCI runtime."""
        host = runtime.detect()
        command = [host.binary, "--root", host.state_root, "exec", self.id, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


async def start_box(podman: Podman, config: SandboxConfig, **changes: object) -> Box:
    """changes: REST fields put over the profile's."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    id = await podman.create({**profile.create_body(config, name=name), **changes})
    await podman.start(id)
    return Box(id, name, (await podman.inspect(id))["State"]["Pid"])
