"""Whatever a client may send and a model may say, for hypothesis; and the reading of an event stream."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import Call, Dialect, Events
from rockroll.model_service.wire import ChatReply, ChatRequest, Delta, TokenLogprob, ToolCall

texts = st.text(st.characters(exclude_categories=["Cs"]))
_said = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_words = st.sampled_from(["text", "user", "assistant", "system", "tool", "function", "auto", "required", "none"])


def any_json(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Any JSON value, in which the dialect's own names turn up more often than chance would have it."""
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    return st.recursive(
        plain | st.text() | names | _words,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(), inner, max_size=4),
        max_leaves=20,
    )


def near(valid: dict[str, Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`valid` with a few of its places, at any depth, replaced, removed or added to."""

    @st.composite
    def damaged(draw: st.DrawFn) -> Any:
        body = json.loads(json.dumps(valid))
        for _ in range(draw(st.integers(1, 3))):
            place: Any = body
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = draw(st.sampled_from(keys)) if keys else None
                inner = None if key is None else place[key]
                if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                    place = inner
                    continue
                break
            if key is None:
                continue
            if isinstance(place, dict) and draw(st.integers(0, 3)) == 0:
                del place[key]
            else:
                place[key] = draw(values)
        return body

    return damaged()


def holds(dialect: Dialect, body: bytes) -> None:
    """Either a call that the wire can carry and whose answer renders, or a refusal (4xx) that renders."""
    try:
        call = dialect.parse(body)
    except ModelServiceError as error:
        assert 400 <= dialect.vendor.status(error) < 500
        assert json.loads(dialect.vendor.error(error))["error"]["message"]
        return
    assert call.messages or call.prompt is not None
    requests = call.requests("id", "box", "token")
    assert 1 <= call.n == len(requests)
    for request in requests:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ChatRequest) == request
    said = ChatReply(text="x", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    assert json.loads(call.answer("id", 0, [said] * call.n))
    assert read(streamed(call.events("id", 0), [(said, [])] * call.n))


@st.composite
def replies(draw: st.DrawFn) -> ChatReply:
    tools = draw(st.lists(st.tuples(_said, texts), max_size=3))
    logprobs = [
        TokenLogprob(token=token, bytes=list(token.encode()), logprob=-0.5, top=[(token, -0.5)])
        for token in draw(st.lists(_said, max_size=3))
    ]
    text = draw(texts)
    return ChatReply(
        text=text,
        reasoning=draw(texts),
        tool_calls=[ToolCall(id=f"call_{i}", name=name, arguments=said) for i, (name, said) in enumerate(tools)],
        finish_reason=draw(st.sampled_from(["stop", "length", "tool_calls"])),
        prompt_tokens=draw(st.integers(0, 9)),
        completion_tokens=draw(st.integers(0, 9)),
        logprobs=logprobs if text and draw(st.booleans()) else None,
    )


@st.composite
def spoken(draw: st.DrawFn, of: st.SearchStrategy[ChatReply] | None = None) -> tuple[ChatReply, list[Delta]]:
    """A reply, and deltas that say all of it, its beginning, or nothing."""
    reply = draw(of or replies())
    deltas: list[Delta] = [Delta(reasoning=each) for each in _cut(draw, reply.reasoning)]
    deltas += [Delta(text=each) for each in _cut(draw, reply.text)]
    deltas += [Delta(logprobs=[each]) for each in reply.logprobs or []]
    for i, call in enumerate(reply.tool_calls):
        deltas.append(Delta(tool=i, tool_id=call.id, name=call.name))
        deltas += [Delta(tool=i, arguments=each) for each in _cut(draw, call.arguments)]
    return reply, deltas[: draw(st.integers(0, len(deltas)))]


def _cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted({draw(st.integers(0, len(text))) for _ in range(draw(st.integers(0, 3)))})
    ends = [*places, len(text)]
    return [text[start:end] for start, end in zip([0, *places], ends, strict=True) if start < end]


def streamed(events: Events, said: list[tuple[ChatReply, list[Delta]]]) -> bytes:
    """All the bytes of a stream in which each index speaks in its turn, one delta after the other."""
    data = events.begin()
    for at in range(max(len(deltas) for _, deltas in said)):
        for index, (_, deltas) in enumerate(said):
            if at < len(deltas):
                data += events.delta(index, deltas[at])
    for index, (reply, _) in enumerate(said):
        data += events.reply(index, reply)
    return data + events.end()


def read(data: bytes) -> list[tuple[str | None, Any]]:
    """(event, data) of each event; `[DONE]` as it is, comments left out."""
    assert data.endswith(b"\n\n")
    found: list[tuple[str | None, Any]] = []
    for block in data.decode().split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        lines = block.split("\n")
        event = lines[0].removeprefix("event: ") if lines[0].startswith("event: ") else None
        text = lines[-1].removeprefix("data: ")
        found.append((event, text if text == "[DONE]" else json.loads(text)))
    return found


def call(dialect: Dialect, body: Any) -> Call:
    return dialect.parse(json.dumps(body).encode())
