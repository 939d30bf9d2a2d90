"""`rockroll serve`: this host's sandboxes over HTTP.

In: an address, a token file. Out: a server until Ctrl-C or SIGTERM. Leaves the API to rockroll/sandbox/http.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rockroll.cli.server_option import ClusterFile, RayAddress, chosen
from rockroll.errors import UsageError


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8700,
    token_file: Annotated[
        Path | None, typer.Option(help="The file with the bearer token, made on first start; $ROCKROLL_HOME/token.")
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Ask nobody for a token; on the loopback only.")] = False,
    cluster: ClusterFile = None,
    ray: RayAddress = None,
) -> None:
    """Serve this host's sandboxes over HTTP, until Ctrl-C; or those of a cluster.

    Every call needs a bearer token, which is made on first start and kept in a file that only you may read. The API and
    its page (/docs) are described in docs/http-api.md. From Python, ROCKROLL_BASE_URL and ROCKROLL_TOKEN, or
    Sandbox(config, base_url=…, token=…), bring the same Sandbox class here; `rockroll sandbox` obeys them too.

    Programs written for ROCK's SDK run against it unchanged (docs/rock-compat.md).

    Traffic is not encrypted: to be reached from elsewhere, stand behind a proxy with TLS, or use an SSH tunnel.

    Examples:

      rockroll serve

      curl -H "Authorization: Bearer $(cat ~/.rockroll/token)" http://127.0.0.1:8700/v1/sandboxes

      ROCKROLL_BASE_URL=http://127.0.0.1:8700 rockroll sandbox ls

      rockroll serve --cluster cluster.json

      ssh -L 8700:127.0.0.1:8700 bighost rockroll serve
    """
    if no_token and token_file is not None:
        raise UsageError("--no-token and --token-file contradict each other; leave one of them out")
    from rockroll.cli.loop import run
    from rockroll.sandbox.http import token as tokens
    from rockroll.sandbox.http.server import serve as serve_http
    from rockroll.sandbox.rock import compat

    path = token_file or tokens.default_path()
    token = None if no_token else tokens.ensure(path)

    def ready(url: str) -> None:
        known = "no token is asked for" if no_token else f"the token is in {path}"
        print(f"serving {url} ({known}; {url}/docs shows the API)", flush=True)

    try:
        with chosen(None, cluster, ray):
            run(serve_http(host, port, token, ready, routers=[compat.router]))
    except KeyboardInterrupt:
        print("rockroll: ended", file=sys.stderr)
