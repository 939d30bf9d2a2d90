"""What the gateway and the relay say to each other over rpc.

In: nothing. Out: the frozen structs and method names of the reverse channel, from the node (rpc client) to the rollout
side (rpc server). Leaves every vendor's HTTP to the dialects and tokens to the rollout side: only text travels here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

CHAT = "chat"
"""ChatRequest → ChatReply. ModelServiceError where the call is refused. Cancelled when the client hung up."""

CHAT_STREAM = "chat.stream"
"""ChatRequest → a stream of Delta as the model speaks, and the whole ChatReply as its last item."""

COUNT = "count"
"""ChatRequest → int: how many tokens its prompt has, by the chat template and the tokenizer that CHAT would use.
Nothing is sampled and nothing noted. ModelServiceError where the relay has no such handler."""

OVER = "over"
"""Over → nothing: a sandbox was refused a call for want of the budget of its route. Said at
the first such refusal of a route, and again at its eighth: that agent is not going to stop."""

MODELS = "models"
"""{} → a stream of Models: the names served now, then again at every change, without end. While it is open the relay
is there: its end by PeerLost is how a gateway learns, also without a call under way, that the relay is gone."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    """JSON schema of its arguments."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made."""

    id: str
    """Made by the rollout side, unique within an episode; the tool's answer names it."""
    name: str
    arguments: str
    """JSON text, as the model wrote it: it may be no valid JSON."""


class Message(msgspec.Struct, frozen=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str = ""
    """assistant: what it thought before it answered, where the client sends that back."""
    tool_calls: list[ToolCall] = []
    """assistant: the calls it made."""
    tool_call_id: str = ""
    """tool: the call that `content` answers."""
    name: str = ""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One completion that a program in a sandbox asked for. None is: the request did not say."""

    id: str
    """The client sees it as the completion's id. Unique together with `index`."""
    sandbox: str
    """The sandbox whose socket the request came in on: the gateway's word, never the client's."""
    token: str
    """What the last `model.route` for that sandbox said. It names the episode."""
    model: str
    messages: list[Message]
    prompt: str | None = None
    """Raw text to go on from, in place of messages: no chat template is applied."""
    tools: list[Tool] = []
    tool_choice: str = "auto"
    """auto, none, required, or `=NAME` for one tool."""
    parallel_tool_calls: bool = True
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] = []
    """The answer ends before the first of these strings."""
    seed: int | None = None
    logprobs: int | None = None
    """None: not wanted. k: the log-prob of each sampled token, and of the k likeliest where the engine has them."""
    index: int = 0
    """Which of the `n` completions of one HTTP request this is."""
    number: int = 0
    """Names this request among those of its token on its link, for later ones to go on from; 0: none will."""
    after: int | None = None
    """The number of an earlier request with the same token on the same link, whose messages stand before `messages`."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """One sampled token as a client that asked for log-probs sees it."""

    token: str
    bytes: list[int]
    logprob: float
    top: list[tuple[str, float]] = []


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta"):
    """What came since the last one; most fields are empty. Joined, the deltas are the ChatReply."""

    text: str = ""
    reasoning: str = ""
    tool: int | None = None
    """The index of the tool call that the next three belong to; `tool_id` and `name` come whole in its first delta."""
    tool_id: str = ""
    name: str = ""
    arguments: str = ""
    logprobs: list[TokenLogprob] = []


class ChatReply(msgspec.Struct, frozen=True, kw_only=True, tag="reply"):
    """The whole answer."""

    text: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    stop: str | None = None
    """The stop string that ended it."""
    cached_tokens: int = 0
    """Of the prompt, those that stood in an earlier turn of the same branch."""
    logprobs: list[TokenLogprob] | None = None


class Models(msgspec.Struct, frozen=True):
    names: list[str]
