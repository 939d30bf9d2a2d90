"""The promises of docs/sessions.md, against real boxes: root of the box, an ordinary user in it, and over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rockroll import Sandbox, SandboxConfig
from rockroll.sandbox.conformance import PROMISES, Promise, Subject
from rockroll.sandbox.node_client import close_node

PAGE = Path(__file__).parents[2] / "docs" / "sessions.md"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(params=["root", "user", "http"], scope="module", loop_scope="module")
async def sandbox(request: pytest.FixtureRequest, node_home: Path) -> AsyncIterator[Sandbox]:
    base_url = request.getfixturevalue("server") if request.param == "http" else None
    user = "1000" if request.param == "user" else None
    async with Sandbox(SandboxConfig(pids=128, user=user), base_url=base_url) as sandbox:
        yield sandbox
    await close_node()


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
async def test_a_sandbox_keeps(sandbox: Sandbox, promise: Promise) -> None:
    await promise.check(Subject(sandbox))


async def test_the_page_lists_every_promise_under_its_number() -> None:
    listed = re.findall(r"^\| (\d+) \|.*\| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert listed == [(str(promise.number), promise.name) for promise in PROMISES]
