"""Conversations that grow: a request that goes on from an earlier one is parsed, and sent, from where it goes on."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects import DIALECTS, Dialect
from rockroll.model_service.history import History
from rockroll.model_service.shared import UNKNOWN, Receiver, Sender
from rockroll.model_service.wire import ChatRequest, Message

CHAT, MESSAGES, RESPONSES = (DIALECTS[f"/v1/{at}"] for at in ("chat/completions", "messages", "responses"))


def body(messages: list[Any], array: str = "messages", **more: Any) -> bytes:
    return json.dumps(
        {"model": "m", **({"max_tokens": 9} if array == "messages" else {}), array: messages, **more}
    ).encode()


def chat(*contents: str) -> list[Any]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def counted(dialect: Dialect) -> tuple[Dialect, list[int]]:
    """The dialect, and how many messages each of its parses had to look at."""
    looked: list[int] = []

    def parse(data: bytes) -> Any:
        call = dialect.parse(data)
        looked.append(len(call.messages))
        return call

    return msgspec.structs.replace(dialect, parse=parse), looked


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES])
def test_only_what_is_new_is_parsed_and_the_old_messages_are_the_same_objects(dialect: Dialect) -> None:
    dialect, looked = counted(dialect)
    history, said, calls = History(), chat("a"), []
    for turn in range(20):
        calls.append(history.parse(dialect, body(said, stream=True)))
        assert calls[-1] == dialect.parse(body(said, stream=True))
        said = [*said, *chat("x", f"answer {turn}")[1:], {"role": "user", "content": f"next {turn}"}]
    assert looked[2::2] == [2] * 19, "an answer and what the user said to it"
    assert all(old is new for old, new in zip(calls[-2].messages, calls[-1].messages, strict=False))


def test_an_answer_that_is_spread_over_items_is_one_message_whatever_was_parsed_before() -> None:
    history = History()
    said: list[Any] = [{"role": "user", "content": "a"}]
    for turn in range(5):
        data = body(said, "input", instructions="Help.")
        assert history.parse(RESPONSES, data) == RESPONSES.parse(data)
        call = {"type": "function_call", "call_id": f"c{turn}", "name": "look", "arguments": "{}"}
        text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
        data = body([*said, text], "input", instructions="Help.")
        assert history.parse(RESPONSES, data) == RESPONSES.parse(data), "an answer at the end is still open"
        said = [*said, text, call, {"type": "function_call_output", "call_id": f"c{turn}", "output": "nothing"}]


@pytest.mark.parametrize(
    "second",
    [
        body(chat("a!", "b", "c")),
        body(chat("a", "b!", "c")),
        body(chat("a", "b", "c"))[:-1] + b', "messages": [{"role": "user", "content": "z"}]}',
        body(chat("a", "b", "c"), metadata={"messages": chat("a", "b", "c")}),
        body(chat("a", "b", "c"), temperature=1.5, stop=["x"]),
        body(chat("a")),
        body([]),
        body([*chat("a"), {"role": "wizard", "content": "b"}]),
        body(chat("a", "b", "c"), n=0),
        body(chat("a", "b", "c"))[:-1],
        body(chat("a")).replace(b"]", b",]"),
        body(chat("a")).replace(b"]", b",,{}]"),
        body(chat("a", "b", "c")).replace(b"}, {", b"}\n ,\t{"),
    ],
)  # fmt: skip
def test_whatever_comes_next_it_is_what_it_would_be_alone(second: bytes) -> None:
    history = History()
    history.parse(CHAT, body(chat("a")))

    def outcome(parse: Any) -> Any:
        try:
            return parse(second)
        except ModelServiceError as error:
            return error.message, error.fields

    assert outcome(lambda data: history.parse(CHAT, data)) == outcome(CHAT.parse)


contents = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('[]{},"\\'), max_size=6)
steps = st.lists(
    st.tuples(st.sampled_from(["grow", "edit", "cut", "system", "fresh"]), contents, st.booleans()), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([CHAT, MESSAGES, RESPONSES]), steps)
def test_no_conversation_is_parsed_otherwise_for_its_past(dialect: Dialect, steps: list[tuple[str, str, bool]]) -> None:
    history, said, system, spaced = History(), chat("a"), "Help.", dialect.array
    where = "instructions" if dialect is RESPONSES else "system"
    sender, receiver = Sender(), Receiver()
    for number, (how, content, first) in enumerate(steps):
        if how == "grow":
            said = [*said, {"role": "assistant", "content": content}, {"role": "user", "content": content + "?"}]
        elif how == "edit":
            said = [{**said[0], "content": content}, *said[1:]]
        elif how == "cut":
            said = said[-1:]
        elif how == "system":
            system = content
        else:
            said = chat(content)
        data = body(said, spaced) if dialect is CHAT else body(said, spaced, **{where: system})
        if first and dialect is not CHAT:
            data = json.dumps({where: system, **json.loads(data)}, ensure_ascii=False).encode()
        call = history.parse(dialect, data)
        assert call == dialect.parse(data)
        (request,) = call.requests(str(number), "box", "token")
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(sender.shorten(request)), type=ChatRequest)
        assert receiver.restore("link", sent).messages == request.messages


def request(messages: list[Message], token: str = "t") -> ChatRequest:
    return ChatRequest(id="i", sandbox="s", token=token, model="m", messages=messages)


def test_what_the_relay_has_is_not_sent_again() -> None:
    sender, receiver = Sender(), Receiver()
    messages = [Message("user", "a")]
    for turn in range(10):
        sent = sender.shorten(request(messages))
        assert len(sent.messages) == (1 if turn == 0 else 2)
        assert receiver.restore("link", sent).messages == messages
        messages = [*messages, Message("assistant", "b"), Message("user", str(turn))]
    assert sender.shorten(request(messages[1:])).after is None, "its beginning is forgotten: all is sent"


def test_the_n_completions_of_one_request_and_forks_of_it_arrive_whole() -> None:
    sender, receiver = Sender(), Receiver()
    start = [Message("user", "a")]
    fork, other = ([*start, Message("assistant", x), Message("user", x)] for x in "bc")
    for messages in (start, start, fork, other, [*fork, Message("user", "d")], [*other, Message("user", "e")]):
        assert receiver.restore("link", sender.shorten(request(messages))).messages == messages


def test_a_relay_that_remembers_nothing_refuses_and_is_sent_the_whole() -> None:
    sender, receiver = Sender(), Receiver()
    messages = [Message("user", "a")]
    receiver.restore("link", sender.shorten(request(messages)))
    messages = [*messages, Message("user", "b")]
    short = sender.shorten(request(messages))
    assert len(short.messages) == 1
    for stranger in (Receiver(), receiver):
        with pytest.raises(ModelServiceError) as refused:
            stranger.restore("another link", short)
        assert refused.value.fields["code"] == UNKNOWN
    assert Receiver().restore("another link", sender.whole(request(messages))).messages == messages


def test_an_episode_that_has_ended_is_forgotten() -> None:
    sender, receiver = Sender(), Receiver()
    receiver.restore("link", sender.shorten(request([Message("user", "a")])))
    receiver.forget("t")
    receiver.forget("t")
    assert receiver._known._characters == 0 and not receiver._known._episodes


def test_what_is_remembered_is_bounded() -> None:
    sender, receiver = Sender(1000), Receiver(1000)
    for number in range(50):
        receiver.restore("link", sender.shorten(request([Message("user", "x" * 200)], f"episode {number}")))
    for end in (sender._sent, receiver._known):
        assert len(end._episodes) < 5 and end._characters <= 1000
        assert end._characters == sum(line.characters for lines in end._episodes.values() for line in lines.values())
