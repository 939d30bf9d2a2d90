"""rockroll: any agent, exact tokens, sealed sandboxes.

The public names are imported on first use, so that `import rockroll` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rockroll.release import VERSION

if TYPE_CHECKING:
    from rockroll.agent.upstream import use_model as use_model
    from rockroll.env.registry import make as make
    from rockroll.env.vector import make_async as make_async
    from rockroll.env.vector import make_vec as make_vec
    from rockroll.sandbox.client import Sandbox as Sandbox
    from rockroll.sandbox.client import list_sandboxes as list_sandboxes
    from rockroll.sandbox.config import SandboxConfig as SandboxConfig
    from rockroll.sandbox.warm_pools import delete_warm_pool as delete_warm_pool
    from rockroll.sandbox.warm_pools import set_warm_pool as set_warm_pool
    from rockroll.sandbox.warm_pools import warm_pools as warm_pools

__version__ = VERSION

_PUBLIC = {
    "Sandbox": "rockroll.sandbox.client",
    "SandboxConfig": "rockroll.sandbox.config",
    "list_sandboxes": "rockroll.sandbox.client",
    "delete_warm_pool": "rockroll.sandbox.warm_pools",
    "make": "rockroll.env.registry",
    "make_async": "rockroll.env.vector",
    "make_vec": "rockroll.env.vector",
    "set_warm_pool": "rockroll.sandbox.warm_pools",
    "use_model": "rockroll.agent.upstream",
    "warm_pools": "rockroll.sandbox.warm_pools",
}
__all__ = [
    "Sandbox",
    "SandboxConfig",
    "__version__",
    "delete_warm_pool",
    "list_sandboxes",
    "make",
    "make_async",
    "make_vec",
    "set_warm_pool",
    "use_model",
    "warm_pools",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rockroll' has no attribute {name!r}")
