"""What comes from another node is what was sent, whole, or an error; and it comes once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import pytest

from rockroll.errors import HostError, ImageMissing, UsageError
from rockroll.sandbox.container.parcels import Checked, sent
from rockroll.sandbox.node.bring import Bring
from rockroll.sandbox.wire import Bring as BringBody
from rockroll.sandbox.wire import Parcel


async def items(*parcels: Parcel) -> AsyncIterator[Parcel]:
    for each in parcels:
        yield each


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


async def test_bytes_with_their_digest_come_through() -> None:
    came = items(Parcel(data=b"ab"), Parcel(data=b"c"), Parcel(digest=digest(b"abc")))
    assert b"".join([data async for data in Checked(came).all()]) == b"abc"


async def test_what_is_sent_ends_with_the_digest_that_is_checked() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"ab"
        yield b"c"

    assert b"".join([data async for data in Checked(sent(pieces())).all()]) == b"abc"


@pytest.mark.parametrize(
    ("parcels", "said"),
    [
        ((Parcel(data=b"abc"), Parcel(digest=digest(b"abd"))), "not what was sent"),
        ((Parcel(data=b"abc"),), "stopped before the end"),
        ((), "stopped before the end"),
    ],
)
async def test_what_is_damaged_or_cut_off_is_an_error_that_is_kept(parcels: tuple[Parcel, ...], said: str) -> None:
    """Kept: the HTTP client that takes the bytes tells of its own failure, not of theirs."""
    checked = Checked(items(*parcels))
    with pytest.raises(HostError, match=said):
        async for _ in checked.all():
            pass
    assert said in str(checked.error)


class Store:
    """A Podman without images."""

    def __init__(self) -> None:
        self.asked = 0

    async def image_inspect(self, name: str) -> dict[str, Any]:
        self.asked += 1
        raise ImageMissing(f"image {name} is not in the local store")


async def test_outside_of_a_cluster_nothing_is_brought() -> None:
    bring = Bring(cast(Any, Store()), cast(Any, None), lambda: None)
    with pytest.raises(ImageMissing, match="not in the local store"):
        await bring.image("localhost/a:1")
    with pytest.raises(UsageError, match="this node is in none"):
        await bring.bring_snapshot(BringBody(name="a", nodes=["b"]), cast(Any, None))


async def test_a_transfer_is_one_however_many_wait_and_outlives_who_gave_up() -> None:
    bring = Bring(cast(Any, Store()), cast(Any, None), lambda: None)
    begun, go = 0, asyncio.Event()

    async def work() -> str:
        nonlocal begun
        begun += 1
        await go.wait()
        return "there"

    waiting = [asyncio.ensure_future(bring._once(("image", "a"), work)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*waiting[1:]) == ["there", "there"]
    assert begun == 1
    assert await bring._once(("image", "a"), work) == "there"
    assert begun == 2, "what is over is not remembered"
    await bring.close()
