"""Bytes as items of a call, with their BLAKE2b at the end: what comes is what was sent, or an error.

In: pieces, or parcels. Out: the other. Leaves what the bytes are to parcel.py and podman.py.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator

from rockroll.errors import HostError, RockrollError
from rockroll.sandbox.wire import Parcel


class Checked:
    """The bytes of parcels, of which nothing is missing and nothing is another. error: why it ended early."""

    def __init__(self, items: AsyncIterator[Parcel]) -> None:
        self._items = items
        self.error: RockrollError | None = None

    async def all(self) -> AsyncGenerator[bytes, None]:
        total = hashlib.blake2b(digest_size=32)
        try:
            async for each in self._items:
                if each.digest:
                    if each.digest != total.hexdigest():
                        raise HostError("what came is not what was sent")
                    return
                total.update(each.data)
                yield each.data
            raise HostError("the other node stopped before the end")
        except RockrollError as error:
            self.error = error
            raise


async def sent(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Parcel, None]:
    total = hashlib.blake2b(digest_size=32)
    async with contextlib.aclosing(pieces):
        async for data in pieces:
            total.update(data)
            yield Parcel(data=data)
    yield Parcel(digest=total.hexdigest())
