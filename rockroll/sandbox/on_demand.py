"""Sandboxes that are not alike: each is started for its lease, and deleted after it.

In: a SandboxConfig, and what each lease changes of it. Out: `async with boxes.lease(changes) as sandbox`. Leaves boxes
that are all alike to pool.py, which has them ready; how many there are at a time is the caller's to say.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any

from rockroll.errors import EnvError
from rockroll.sandbox.client import Sandbox
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.where import Cluster, hub
from rockroll.sandbox.wire import DEFAULT_SESSION


class OnDemand:
    """config: what a box is, but for what its lease says. cluster: as a Sandbox takes it."""

    def __init__(self, config: SandboxConfig | None = None, *, cluster: Cluster | None = None) -> None:
        self.config = dataclasses.replace(config or SandboxConfig(), name=None)
        self._hub = hub(cluster)

    @contextlib.asynccontextmanager
    async def lease(self, changes: Mapping[str, Any] | None = None) -> AsyncIterator[Sandbox]:
        """One box with an open session, for this block alone. changes: settings of a SandboxConfig, over the config's.

        EnvError, since a task says them, for a setting that there is not or a value that cannot be; and what the start
        of a box raises.
        """
        try:
            config = dataclasses.replace(self.config, **dict(changes or {}))
        except (TypeError, ValueError) as error:
            raise EnvError(f"the box that a task asks for cannot be: {error}") from None
        # A lease must not go on, unknowing, in a box whose processes died with its node.
        async with Sandbox(config, outlives_node=False, base_url="", cluster=self._hub or "") as sandbox:
            await sandbox.create_session(DEFAULT_SESSION)
            yield sandbox
