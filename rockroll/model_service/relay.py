"""The rollout side of the reverse channel: chat requests from every sandbox arrive here.

In: ChatRequests over rpc from the gateways of all nodes. Out: what the handler makes of them, whole or as it comes.
Leaves tokens, episodes and who may ask to the handler, HTTP to the gateways.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Self

from rockroll import rpc
from rockroll.errors import ModelServiceError
from rockroll.model_service.budget import Over
from rockroll.model_service.shared import Receiver
from rockroll.model_service.wire import CHAT, CHAT_STREAM, COUNT, MODELS, OVER, ChatReply, ChatRequest, Delta, Models

OnDelta = Callable[[Delta], None]
Handler = Callable[[ChatRequest, OnDelta | None], Awaitable[ChatReply]]
"""`async def handler(request, on_delta)`: on_delta is told what came since its last call; None where nobody streams."""
Count = Callable[[ChatRequest], int]
"""`def count(request)`: the tokens of its prompt; nothing is sampled."""


class Relay:
    """Serves `handler` at `address` (`ipc://PATH` or `tcp://HOST:PORT`).

    handler: raises ModelServiceError to refuse a call. It is cancelled when the client in the sandbox hung up and
    when the sandbox's route changed, so a late call of one episode never outlives it.
    on_over: told that a sandbox was refused a call for want of the budget of its route: at the first and the eighth.
    count: answers Anthropic's count_tokens; without it those calls are refused.
    """

    def __init__(
        self,
        address: str,
        handler: Handler,
        models: Iterable[str] = (),
        *,
        count: Count | None = None,
        on_over: Callable[[Over], None] | None = None,
    ) -> None:
        self.address = address
        self._handler = handler
        self._count = count
        self._on_over = on_over
        self._models = list(models)
        self._said = Receiver()
        self._changed = asyncio.Event()
        self._server = rpc.Server(
            address,
            {
                CHAT: self._chat,
                CHAT_STREAM: self._stream,
                COUNT: self._counted,
                OVER: self._over,
                MODELS: self._serve_models,
            },
            types={CHAT: ChatRequest, CHAT_STREAM: ChatRequest, COUNT: ChatRequest, OVER: Over},
        )

    async def start(self) -> None:
        """RockrollError where the address cannot be bound."""
        await self._server.start()

    async def close(self) -> None:
        """Cancels what runs. Its callers get 503."""
        await self._server.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def forget(self, token: str) -> None:
        """No call will come any more under this token: what was said under it need not be remembered."""
        self._said.forget(token)

    def set_models(self, names: Iterable[str]) -> None:
        """What `GET /v1/models` answers from now on, in every sandbox that is routed here."""
        self._models = list(names)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _chat(self, request: ChatRequest, peer: rpc.Peer) -> ChatReply:
        return await self._handler(self._said.restore(peer.id, request), None)

    async def _stream(self, request: ChatRequest, peer: rpc.Peer) -> AsyncIterator[Delta | ChatReply]:
        said: asyncio.Queue[Delta | None] = asyncio.Queue()
        answer = asyncio.ensure_future(self._handler(self._said.restore(peer.id, request), said.put_nowait))
        answer.add_done_callback(lambda _: said.put_nowait(None))
        try:
            while (delta := await said.get()) is not None:
                yield delta
            yield answer.result()
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _counted(self, request: ChatRequest, peer: rpc.Peer) -> int:
        if self._count is None:
            raise ModelServiceError(
                "this run does not count tokens; the usage of an answer says how many its prompt had",
                status=404,
                type="not_found_error",
                code="not_counted",
            )
        return self._count(request)

    async def _over(self, over: Over, peer: rpc.Peer) -> None:
        if self._on_over is not None:
            self._on_over(over)

    async def _serve_models(self, body: Any, peer: rpc.Peer) -> AsyncIterator[Models]:
        while True:
            changed = self._changed  # taken before the yield: a change during it is not missed
            yield Models(self._models)
            await changed.wait()
