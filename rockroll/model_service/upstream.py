"""One relay as a gateway sees it: a connection that all sandboxes routed there share, and whether it is up.

In: a relay's address and ChatRequests. Out: tasks that end in a ChatReply or an error; the models' names. Leaves who
asks, and what a refusal looks like, to gateway.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
import zmq

from rockroll import rpc
from rockroll.errors import HostError, ModelServiceError, PeerLost, RockrollError
from rockroll.model_service.budget import Over
from rockroll.model_service.shared import UNKNOWN, Sender
from rockroll.model_service.source import Say
from rockroll.model_service.wire import CHAT, CHAT_STREAM, COUNT, MODELS, OVER, ChatReply, ChatRequest, Delta, Models

_log = logging.getLogger(__name__)
PATIENCE_S = 1.0
"""How long a call waits for a relay that is starting or coming back, before it is refused."""

_Item: Any = Delta | ChatReply
T = TypeVar("T")


class Upstream:
    """connecting ─► up ◄─► lost; ─► broken where the address is none, or nothing like a relay answers there.

    Being up is: the stream of model names is open. ZeroMQ would hold a call for a relay that is gone until one comes
    back, so calls start only when up, and those under way when the relay is lost are cancelled.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._models: list[str] = []
        self._up = asyncio.Event()
        self._broken: Exception | None = None
        self._client: rpc.Client | None = None
        self._sent = Sender()
        self._calls: set[asyncio.Task[Any]] = set()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def ready(self) -> None:
        """Returns when up. ModelServiceError (503) where it is not within PATIENCE_S."""
        if self._up.is_set():
            return
        if self._broken is not None:
            raise self.lost()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._up.wait()
        if not self._up.is_set():
            raise self.lost()

    def server(self, path: str) -> None:
        """A relay speaks no HTTP."""

    async def names(self) -> list[str]:
        """What the relay serves. As `ready`."""
        await self.ready()
        return self._models

    def chat(self, request: ChatRequest, say: Say | None = None) -> asyncio.Task[ChatReply]:
        """The call under way, its deltas told to `say`; cancelled where the relay is lost. Only when up."""
        self._live()
        return self._begin(self._chat(request, say))

    def count(self, request: ChatRequest) -> asyncio.Task[int]:
        """How many tokens the prompt has. As `chat`."""
        return self._begin(self._live().call(COUNT, request, type=int))

    def over(self, over: Over) -> None:
        """Tells the relay, if it is there to be told."""
        if self._client is not None and self._up.is_set():
            telling = self._begin(self._client.call(OVER, over))
            telling.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def _live(self) -> rpc.Client:
        if self._client is None or not self._up.is_set():
            raise self.lost()
        return self._client

    async def _chat(self, request: ChatRequest, say: Say | None) -> ChatReply:
        try:
            return await self._asked(self._sent.shorten(request), say)
        except ModelServiceError as error:
            if error.fields.get("code") != UNKNOWN:
                raise
        return await self._asked(self._sent.whole(request), say)

    def _asked(self, request: ChatRequest, say: Say | None) -> Coroutine[Any, Any, ChatReply]:
        client = self._live()
        return client.call(CHAT, request, type=ChatReply) if say is None else _streamed(client, request, say)

    def _begin(self, asked: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        call = asyncio.get_running_loop().create_task(asked)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def lost(self) -> ModelServiceError:
        why = (
            f"cannot be used: {self._broken}" if self._broken else "does not answer; it may have ended, or be starting"
        )
        return ModelServiceError(
            f"the model's side of this run {why}; try again later",
            status=503,
            type="server_error",
            code="upstream_lost",
        )

    async def _watch(self) -> None:
        try:
            client = self._client = await rpc.connect(self.address)
            while True:
                with contextlib.suppress(PeerLost):
                    async for models in client.stream(MODELS, {}, type=Models):
                        self._models = models.names
                        self._up.set()
                self._down()
        except HostError as error:  # says paths of the host, which are no business of a sandbox
            _log.error("model service: the relay at %s cannot be reached: %s", self.address, error)
            self._broken = RockrollError("this node lacks the key of its link; the node's log says more")
            self._down()
        except (RockrollError, zmq.ZMQError, msgspec.DecodeError) as error:
            self._broken = error
            self._down()

    def _down(self) -> None:
        self._up.clear()
        self._sent = Sender()
        for call in list(self._calls):
            call.cancel()

    async def close(self) -> None:
        """Cancels what runs and ends the connection."""
        self._watching.cancel()
        self._down()
        await asyncio.gather(self._watching, *self._calls, return_exceptions=True)
        if self._client is not None:
            await self._client.close()


async def _streamed(client: rpc.Client, request: ChatRequest, say: Say) -> ChatReply:
    reply: ChatReply | None = None
    async with contextlib.aclosing(client.stream(CHAT_STREAM, request, type=_Item)) as items:
        async for item in items:
            if isinstance(item, ChatReply):
                reply = item
            else:
                say(item)
    if reply is None:
        raise PeerLost("the relay's stream ended without the whole reply")
    return reply
