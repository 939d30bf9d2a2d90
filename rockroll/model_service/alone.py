"""The gateway without sandboxes: one port of this host, one source of answers.

In: an address, and where answers come from. Out: an endpoint that every client of OpenAI or Anthropic can use. Leaves
what is answered to gateway.py, and the command line to cli/model_service.py.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

from rockroll.errors import HostError
from rockroll.model_service.box import Limits
from rockroll.model_service.gateway import Gateway
from rockroll.model_service.source import Source

LIMITS = Limits(calls=1024, connections=1024, bodies=2**30)
"""For all clients together: they are the user's own, not what runs in a sandbox."""
_BACKLOG = 4096


@contextlib.asynccontextmanager
async def gateway(source: Source, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serves `source`, which it closes in the end; yields the base URL for OpenAI's clients, less its `/v1`.

    port 0: any that is free. HostError where the address cannot be listened on. Nobody is asked for a key.
    """
    served = Gateway()
    try:
        sock = _listen(host, port)
    except BaseException:
        await source.close()
        raise
    name = f"[{host}]" if ":" in host else host
    try:
        number = sock.getsockname()[1]
        await served.attach("alone", sock, LIMITS)
        served.route_to("alone", source)
        yield f"http://{name}:{number}"
    finally:
        await served.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise HostError(f"{host}:{port} cannot be listened on: {error.strerror}; name another --port") from None
