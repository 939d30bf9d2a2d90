"""`rockroll sandbox --base-url URL …`: the sandboxes of a server instead of this host's.

In: the option. Out: ROCKROLL_BASE_URL for the one command line. Leaves reading it to rockroll/sandbox/where.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer


def server_option(
    ctx: typer.Context,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The sandboxes of a server, as `rockroll serve` prints its URL; $ROCKROLL_BASE_URL if left out, and"
            " the token is $ROCKROLL_TOKEN. Neither: this host's own.",
        ),
    ] = None,
) -> None:
    if base_url is not None:
        ctx.with_resource(_set(base_url))


@contextmanager
def _set(base_url: str) -> Iterator[None]:
    before = os.environ.get("ROCKROLL_BASE_URL")
    os.environ["ROCKROLL_BASE_URL"] = base_url
    try:
        yield
    finally:
        if before is None:
            del os.environ["ROCKROLL_BASE_URL"]
        else:
            os.environ["ROCKROLL_BASE_URL"] = before
