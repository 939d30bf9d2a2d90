"""`rockroll sandbox --base-url URL …`, `--cluster FILE`, `--ray ADDRESS`: the sandboxes of a server or a cluster.

In: the options. Out: ROCKROLL_BASE_URL or ROCKROLL_CLUSTER for the one command line. Leaves reading them to
rockroll/sandbox/where.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rockroll.errors import UsageError

ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="The sandboxes of a cluster, by the file that `rockroll hub` wrote; $ROCKROLL_CLUSTER if left out.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="The sandboxes of a Ray cluster's nodes: auto, or Ray's address."),
]


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
    cluster: ClusterFile = None,
    ray: RayAddress = None,
) -> None:
    ctx.with_resource(chosen(base_url, cluster, ray))


@contextmanager
def chosen(base_url: str | None = None, cluster: Path | None = None, ray: str | None = None) -> Iterator[None]:
    """What was said on the command line, in the environment for as long as it runs."""
    said = [
        name for name, value in (("--base-url", base_url), ("--cluster", cluster), ("--ray", ray)) if value is not None
    ]
    if len(said) > 1:
        raise UsageError(f"{' and '.join(said)} name {len(said)} places; leave all but one of them out")
    if ray is not None:
        cluster = _of_ray(ray)
    if not said:
        yield
        return
    name, other = "ROCKROLL_BASE_URL", "ROCKROLL_CLUSTER"
    value = base_url or ""
    if cluster is not None:
        name, other, value = other, name, str(cluster)
    before = {key: os.environ.get(key) for key in (name, other)}
    os.environ[name] = value
    os.environ.pop(other, None)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = old


def _of_ray(address: str) -> Path:
    """Imported here alone: without --ray nothing of Ray is loaded."""
    from importlib import import_module

    return import_module("rockroll.placement.ray").cluster_file(address)
