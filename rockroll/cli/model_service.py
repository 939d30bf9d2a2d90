"""`rockroll model-service`: the gateway alone, for whoever wants only that.

In: where answers come from, an address. Out: an endpoint until Ctrl-C or SIGTERM. Leaves the serving to
rockroll/model_service/.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rockroll.cli.arguments import KeyEnv, Speaks, Upstream
from rockroll.errors import UsageError

if TYPE_CHECKING:
    from rockroll.model_service.source import Source


def model_service(
    upstream: Upstream = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what --upstream answers to this new file.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answer from such a file, and ask nobody.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Answer with its lines in turn: {"text": "Hello."}')
    ] = None,
    speaks: Speaks = None,
    key_env: KeyEnv = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8800,
) -> None:
    """One endpoint for every client of OpenAI or Anthropic, in front of one server, a recording or a script.

    Requests in a dialect that the server speaks are forwarded byte for byte, streams as they come; others (Anthropic's
    messages, OpenAI's responses) are asked as chat completions and answered in their own. The client's key never leaves
    this host: the server gets the one in --key-env. Whoever reaches the port uses that key, so it is the loopback's.

    A recording gives the n-th answer to a request to the n-th request that equals it. docs/model-service.md has more.

    Examples:

      rockroll model-service --upstream https://api.openai.com/v1

      OPENAI_BASE_URL=http://127.0.0.1:8800/v1 OPENAI_API_KEY=any python my_agent.py

      ANTHROPIC_BASE_URL=http://127.0.0.1:8800 ANTHROPIC_API_KEY=any claude

      rockroll model-service --upstream http://127.0.0.1:8000/v1 --record talk.jsonl

      rockroll model-service --replay talk.jsonl
    """
    source = _source(upstream, record, replay, script, speaks or [], key_env)
    from rockroll.cli.loop import run
    from rockroll.model_service.alone import gateway
    from rockroll.sandbox.http.server import is_loopback

    if not is_loopback(host):
        print(f"rockroll: whoever can reach {host} can use this server, and its key", file=sys.stderr)

    async def serve() -> None:
        import asyncio

        async with gateway(source(), host, port) as url:
            print(f"serving {url} (OPENAI_BASE_URL={url}/v1 ANTHROPIC_BASE_URL={url})", flush=True)
            await asyncio.get_running_loop().create_future()

    try:
        run(serve())
    except KeyboardInterrupt:
        print("rockroll: ended", file=sys.stderr)


def _source(
    upstream: str | None,
    record: Path | None,
    replay: Path | None,
    script: Path | None,
    speaks: list[str],
    key_env: str | None,
) -> Callable[[], Source]:
    """What makes the source of answers, on the event loop. UsageError where the options do not go together."""
    given = [name for name, value in (("--upstream", upstream), ("--replay", replay), ("--script", script)) if value]
    if len(given) != 1:
        raise UsageError(
            f"answers come from one of --upstream, --replay and --script; got {' and '.join(given) or 'none'}"
        )
    if record is not None and upstream is None:
        raise UsageError("--record writes what --upstream answers; name that too")
    if key_env is not None and upstream is None:
        raise UsageError("--key-env is the key of --upstream; name that too")
    if speaks and script is not None:
        raise UsageError("--speaks is said of --upstream, or of a recording of it: a script answers every dialect")
    key = os.environ.get(key_env or "OPENAI_API_KEY", "")
    if key_env is not None and not key:
        raise UsageError(f"--key-env: the environment has no {key_env}, or it is empty")

    from rockroll.model_service import script as scripts
    from rockroll.model_service.recording import Recorder, Replay
    from rockroll.model_service.service import COMPATIBLE, RemoteServer, Service
    from rockroll.model_service.source import Server

    if script is not None:
        scripted = scripts.from_file(script)
        return lambda: scripted
    server: Server = RemoteServer(upstream, key) if upstream is not None else Replay(replay or Path())
    service = Service(server, {*COMPATIBLE, *speaks})
    if record is None:
        return lambda: service
    recorder = Recorder(server, record)
    return lambda: Service(recorder, {*COMPATIBLE, *speaks})
