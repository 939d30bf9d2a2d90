"""Where sandboxes are: this host's own node, or a server (`rockroll serve`).

In: what the caller said, else ROCKROLL_BASE_URL and ROCKROLL_TOKEN. Out: a Server, or None for this host's node. Leaves
connecting to node_client.py.
"""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import urlsplit

from rockroll import home
from rockroll.errors import UsageError

BASE_URL, TOKEN = "ROCKROLL_BASE_URL", "ROCKROLL_TOKEN"
TOKEN_FILE = "token"
"""In the home: where this home's server keeps its token."""


class Server(NamedTuple):
    base_url: str
    token: str | None


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
