"""One sandbox's way out: the proxy of `network: [host, …]`, opened inside at every start.

In: its config; the pid of its init. Out: a proxy that listens on 127.0.0.1:41415 in there, the variables that lead
programs to it, and what it has seen. A sandbox with another network has none. Leaves serving to proxy.py.
"""

from __future__ import annotations

from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.linux import netns
from rockroll.sandbox.net.proxy import Proxy
from rockroll.sandbox.net.resolve import Resolve
from rockroll.sandbox.network import Policy
from rockroll.sandbox.wire import NetworkInfo

PORT = 41415
"""Beside the model's endpoint: a port that no usual server takes."""
BACKLOG = 128


def environment(config: SandboxConfig) -> dict[str, str]:
    """What programs in the box are told. Both cases: curl reads http_proxy in lower case only, others the upper one.
    Node.js heeds them from 24 on, if told to."""
    if not config.allowed:
        return {}
    proxy, direct = f"http://127.0.0.1:{PORT}", "127.0.0.1,localhost,::1"
    names = {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": direct}
    return {**names, **{name.lower(): value for name, value in names.items()}, "NODE_USE_ENV_PROXY": "1"}


class Egress:
    """open ─► gone ─► open … ─► close."""

    def __init__(self, config: SandboxConfig, resolve: Resolve | None = None) -> None:
        self._network = config.network_text
        self._proxy = Proxy(Policy(config.allowed), resolve=resolve) if config.allowed else None

    def open(self, pid: int) -> None:
        """Before any command runs. Raises SandboxLost, HostError."""
        if self._proxy:
            self._proxy.serve(netns.listen_in(pid, PORT, BACKLOG))

    def gone(self) -> None:
        """The box has ended, and may come back."""
        if self._proxy:
            self._proxy.shut()

    def forget(self) -> None:
        """The box's next user has opened nothing yet."""
        if self._proxy:
            self._proxy.forget()

    async def close(self) -> None:
        if self._proxy:
            await self._proxy.close()

    def info(self) -> NetworkInfo:
        if not self._proxy:
            return NetworkInfo(network=self._network)
        return NetworkInfo(
            network=self._network, **self._proxy.counts, open=len(self._proxy.live), recent=self._proxy.events()
        )
