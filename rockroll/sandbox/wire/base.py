"""What every body of a node's method is built from, and the bodies that say least.

In and out: plain values only, so that msgpack carries them. `id` accepts an id, a unique id prefix or a name. Leaves
what each method takes to the modules beside this one.
"""

from __future__ import annotations

import msgspec


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all: frozen, keyword arguments only."""


class Ref(Struct, frozen=True):
    id: str


class Empty(Struct, frozen=True):
    """A body with nothing in it."""
