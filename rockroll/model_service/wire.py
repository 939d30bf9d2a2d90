"""What the gateway and the relay say to each other over rpc.

In: nothing. Out: the frozen structs and method names of the reverse channel, from the node (rpc client) to the rollout
side (rpc server). Leaves HTTP to openai_chat.py and tokens to the rollout side: only text travels here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

CHAT = "chat"
"""ChatRequest → ChatReply. ModelServiceError where the call is refused. Cancelled when the client hung up."""

MODELS = "models"
"""{} → a stream of Models: the names served now, then again at every change, without end. While it is open the relay
is there: its end by PeerLost is how a gateway learns, also without a call under way, that the relay is gone."""


class Message(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One chat completion that a program in a sandbox asked for. None is: the request did not say."""

    id: str
    """Unique; the client sees it as the completion's id."""
    sandbox: str
    """The sandbox whose socket the request came in on: the gateway's word, never the client's."""
    token: str
    """What the last `model.route` for that sandbox said. It names the episode."""
    model: str
    messages: list[Message]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] = []
    """Empty: the gateway refuses stop strings."""
    seed: int | None = None


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Models(msgspec.Struct, frozen=True):
    names: list[str]
