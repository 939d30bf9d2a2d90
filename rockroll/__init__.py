"""rockroll: any agent, exact tokens, sealed sandboxes.

The public names are imported on first use, so that `import rockroll` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rockroll.env.registry import make as make
    from rockroll.sandbox.client import Sandbox as Sandbox
    from rockroll.sandbox.client import list_sandboxes as list_sandboxes
    from rockroll.sandbox.config import SandboxConfig as SandboxConfig

__version__ = "0.1.0"

_PUBLIC = {
    "Sandbox": "rockroll.sandbox.client",
    "SandboxConfig": "rockroll.sandbox.config",
    "list_sandboxes": "rockroll.sandbox.client",
    "make": "rockroll.env.registry",
}
__all__ = ["Sandbox", "SandboxConfig", "__version__", "list_sandboxes", "make"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rockroll' has no attribute {name!r}")
