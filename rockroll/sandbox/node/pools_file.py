"""The warm pools that were set by hand, kept across nodes: node/pools.json.

In and out: specs by name. A file that cannot be read is no pools: a warm pool is a convenience.
"""

from __future__ import annotations

import logging

import msgspec

from rockroll import home
from rockroll.sandbox.node.node_config import PoolSpec

_log = logging.getLogger(__name__)


def save(pools: dict[str, PoolSpec]) -> None:
    path = home.node_dir() / "pools.json"
    if not pools:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(pools))
    temporary.replace(path)


def load() -> dict[str, PoolSpec]:
    path = home.node_dir() / "pools.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, PoolSpec])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        _log.error("%s cannot be read, and its pools are gone: %s", path, error)
        return {}
