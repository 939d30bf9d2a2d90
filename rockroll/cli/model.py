"""`rockroll sandbox model`: which server answers the model calls of a sandbox.

In: the command line. Out: a line for each sandbox. Leaves the routing to rockroll/agent/upstream.py.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rockroll.cli.arguments import Ids, KeyEnv, Speaks, Upstream
from rockroll.cli.loop import run
from rockroll.cli.node import connected
from rockroll.cli.text import safe
from rockroll.errors import UsageError


def model(
    ids: Ids,
    upstream: Upstream = None,
    off: Annotated[bool, typer.Option("--off", help="Refuse its model calls from now on.")] = False,
    key_env: KeyEnv = None,
    speaks: Speaks = None,
    calls: Annotated[int | None, typer.Option(min=1, help="Most calls in all; then the vendor's rate error.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Most calls at one time; 16 in any case.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="For how long calls are answered.")] = None,
) -> None:
    """Let programs in a sandbox talk to a model: any server that speaks OpenAI's dialects answers them.

    They find it at $OPENAI_BASE_URL and $ANTHROPIC_BASE_URL, which are set in every sandbox; it needs no network for
    that, and the server's key stays out here. It holds until it is said again, and ends with the node process.

    Examples:

      rockroll sandbox up --name demo

      rockroll sandbox model demo --upstream https://api.openai.com/v1

      rockroll sandbox exec demo -- sh -c 'curl -s $OPENAI_BASE_URL/models'

      rockroll sandbox model demo --off
    """
    if (upstream is None) != off:
        raise UsageError("say which server answers, --upstream URL, or --off; one of them")
    budget = {"calls": calls, "concurrent": concurrent, "seconds": seconds}
    bounds = {name: value for name, value in budget.items() if value is not None}
    if off and (key_env or speaks or bounds):
        raise UsageError("--off refuses every call; leave the other options out")
    key = os.environ.get(key_env or "OPENAI_API_KEY", "") if upstream else ""
    if key_env is not None and not key:
        raise UsageError(f"--key-env: the environment has no {key_env}, or it is empty")

    async def work() -> None:
        from rockroll.agent.upstream import use_model
        from rockroll.sandbox import where

        if isinstance(where.place(), where.Server):
            raise UsageError("ROCKROLL_BASE_URL is set: a sandbox's model is said on the host where it runs")
        async with connected():
            for id in ids:
                await use_model(id, upstream, key=key, speaks=speaks or (), budget=bounds)
                print(f"{safe(id)}: model calls {'are refused' if upstream is None else f'go to {safe(upstream)}'}")

    run(work())
