"""A look into a sandbox from outside: the part of `Sandbox` with its use, processes, environment, network and ports.

In: numbers and names as the box has them. Out: what is there, or the change made. Leaves the asking to client_link.py
and a port that is forwarded to forward.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rockroll.errors import RockrollError
from rockroll.sandbox import wire
from rockroll.sandbox.client_link import Link
from rockroll.sandbox.forward import Forward
from rockroll.sandbox.wire import NetworkInfo, ProcessInfo, Stats


class Inside(Link):
    """What goes on in one box."""

    async def stats(self) -> Stats:
        """What the box has used: CPU seconds, bytes of memory and disk, processes."""
        return await self._call("sandbox.stats", self._ref, Stats)

    async def processes(self) -> list[ProcessInfo]:
        """Every process in the box, init first, numbered as the box does: owner, command line, state, use, session."""
        return await self._call("sandbox.processes", self._ref, list[ProcessInfo])

    async def signal(self, process: int | ProcessInfo, name: str = "TERM") -> None:
        """Sends a signal ("TERM", "SIGKILL", "10") to one process of the box.

        process: a row of `processes()`, then that process or none gets it; or a pid as the box numbers it, then
        whoever has it now. SandboxError where it is gone, UsageError for init.
        """
        pid, birth = (process, 0) if isinstance(process, int) else (process.pid, process.birth)
        await self._call("sandbox.signal", wire.Signal(id=self.id, pid=pid, signal=name, birth=birth))

    async def env(self) -> dict[str, str]:
        """The environment of a program that would start in the box now."""
        return await self._call("sandbox.env", self._ref, dict[str, str])

    async def set_env(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Sets variables, or removes those whose value is None; returns the environment after that.

        For programs and sessions that start later, also after `stop` and `start`, and for open sessions from their next
        command on (as by `export`); a command that is running keeps what it has. `recycle` forgets all of it.
        """
        return await self._call("sandbox.set_env", wire.SetEnv(id=self.id, changes=dict(changes)), dict[str, str])

    async def network(self) -> NetworkInfo:
        """Whom the box may reach, and what it has asked its proxy for: counts, and the last connections."""
        return await self._call("sandbox.network", self._ref, NetworkInfo)

    def forward(
        self,
        port: int,
        *,
        local: int = 0,
        address: str = "127.0.0.1",
        on_error: Callable[[RockrollError], None] | None = None,
    ) -> Forward:
        """`async with sandbox.forward(8080) as place:` connections to `place` on this host (place.host, place.port,
        f"http://{place}") go to that port of the box's own loopback, whatever its network.

        local: the port on this host; 0: any free one. on_error: told of each connection that found nothing listening,
        or broke off; it is logged otherwise. UsageError where the place is taken.
        """
        return Forward(self, port, local=local, address=address, on_error=on_error)
