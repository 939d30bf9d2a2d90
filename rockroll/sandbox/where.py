"""Where sandboxes are: this host's own node, a cluster (its hub), or a server (`rockroll serve`).

In: what the caller said, else ROCKROLL_CLUSTER, or ROCKROLL_BASE_URL and ROCKROLL_TOKEN. Out: a Hub, a Server, or None
for this host's node. Leaves connecting to node_client.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from rockroll import home
from rockroll.errors import UsageError
from rockroll.sandbox.cluster.file import ClusterFile

CLUSTER = "ROCKROLL_CLUSTER"
"""The path of a cluster file (cluster/file.py)."""
BASE_URL, TOKEN = "ROCKROLL_BASE_URL", "ROCKROLL_TOKEN"
TOKEN_FILE = "token"
"""In the home: where this home's server keeps its token."""


class Server(NamedTuple):
    base_url: str
    token: str | None


class Hub(NamedTuple):
    """Of a cluster."""

    address: str
    server_key: str


Place = Server | Hub
Cluster = str | Path | Hub
"""A cluster file, or what it says."""


def hub(cluster: Cluster | None = None) -> Hub | None:
    """cluster: None asks the environment; "" is none. UsageError where the file is none."""
    if isinstance(cluster, Hub):
        return cluster
    if cluster is None:
        cluster = os.environ.get(CLUSTER, "")
    if not str(cluster):
        return None
    file = ClusterFile.read(Path(cluster))
    return Hub(file.hub, file.server_key)


def place(base_url: str | None = None, token: str | None = None, cluster: Cluster | None = None) -> Place | None:
    """What was said goes before what the environment says: `cluster` as in `hub`, the others as in `server`. UsageError
    where both a cluster and a server are named."""
    if cluster is not None and str(cluster) and base_url:
        raise UsageError("cluster and base_url name two places; leave one of them out")
    if base_url is None or cluster:
        found = hub(cluster)
        if found is not None and not cluster and os.environ.get(BASE_URL):
            raise UsageError(f"{CLUSTER} and {BASE_URL} name two places; unset one of them")
        if found is not None:
            return found
    return server(base_url, token)


def server(base_url: str | None = None, token: str | None = None) -> Server | None:
    """base_url: None asks the environment; "" is this host's node. token: None asks the environment and, for a server
    on this host, the home's token file. UsageError for a token without a base_url."""
    if base_url is None:
        base_url = os.environ.get(BASE_URL, "")
    if not base_url:
        if token is not None:
            raise UsageError(f"token: it goes with the base_url of a server, or {BASE_URL}; there is neither")
        return None
    token = token or os.environ.get(TOKEN) or None
    if token is None and urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1"):
        try:
            token = (home.home() / TOKEN_FILE).read_text().strip() or None
        except OSError:
            pass  # another user's, or one that needs none: its answer says so
    return Server(base_url.rstrip("/"), token)
