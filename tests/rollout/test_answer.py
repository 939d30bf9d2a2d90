"""AnswerParser: reasoning, content and calls, whatever the pieces; what is no call remains text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockroll.rollout import xml_calls
from rockroll.rollout.answer import AnswerParser, Call, CallStyle, Style, detect

from .families import TEMPLATES

TOOLS = frozenset({"f", "g"})
SCHEMA = {
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "b": {"type": "boolean"},
        "o": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        "l": {"type": ["array", "null"]},
        "m": {"type": ["string", "integer"]},
        "any": {},
        "odd": 3,
    }
}
TYPES = xml_calls.types([("f", SCHEMA), ("g", {})])


def read(text: str, style: Style, cuts: list[int] | None = None, **more: Any) -> AnswerParser:
    """Parse it in these pieces; what was told on the way is what it comes to."""
    parser = AnswerParser(style, **({"tools": TOOLS, "types": TYPES} | more))
    told = [parser.feed(text[a:b]) for a, b in zip([0, *(cuts or [])], [*(cuts or []), len(text)], strict=True)]
    told.append(parser.finish())
    assert "".join(said.text for said in told) == parser.content
    assert "".join(said.reasoning for said in told) == parser.reasoning
    assert [call for said in told for call in said.calls] == parser.calls
    return parser


CALLS: list[tuple[CallStyle, str, str, list[Call]]] = [
    ("hermes", 'I look.\n<tool_call>\n{"name": "f", "arguments": {"x":  [1]}}\n</tool_call>', "I look.",
     [Call("f", '{"x":  [1]}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"arguments": {"a": "}"}, '
     '"name": "unknown"}</tool_call>\n', "", [Call("f", "{}"), Call("unknown", '{"a": "}"}')]),
    ("xml", "I look.\n\n<tool_call>\n<function=f>\n<parameter=s>\n 1\n\n</parameter>\n</function>\n</tool_call>",
     "I look.", [Call("f", '{"s": " 1\\n"}')]),
    ("xml", "<tool_call><function=f><parameter=n>3</parameter></function></tool_call>\n<tool_call>\n<function=new>\n"
     "<parameter=a>\n<b></parameter></tool_call></b>\n</parameter>\n</function>\n</tool_call>\n", "",
     [Call("f", '{"n": 3}'), Call("new", '{"a": "<b></parameter></tool_call></b>"}')]),
    ("llama", '{"name": "f", "parameters": {"a": {"b": 1}}}', "", [Call("f", '{"a": {"b": 1}}')]),
    ("llama", '<|python_tag|>{"name": "g", "parameters": {}} ', "", [Call("g", "{}")]),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "123456789"}, '
     '{"name": "g", "arguments": {}}]', "", [Call("f", '{"a": 1}', "123456789"), Call("g", "{}")]),
    ("mistral", 'So:[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]abcdefghi[ARGS]{}', "So:",
     [Call("f", '{"a": 1}'), Call("g", "{}", "abcdefghi")]),
]  # fmt: skip

TEXTS: list[tuple[CallStyle, str]] = [
    ("hermes", 'a <tool_call>\n{"name": "f", "arguments": 3}\n</tool_call> b '),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {}'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}} and</tool_call>'),
    ("hermes", "a < b, <tool"),
    ("xml", 'a <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> b '),
    ("xml", "<tool_call>\n<function=f>\n<parameter=s>\n1\n</parameter>\n</tool_call> b"),
    ("xml", "<tool_call>\n<function=f>\n<parameter=s>\n1\n</function>\n</tool_call>"),
    ("xml", "<tool_call>\n<function=f>\nso\n</function>\n</tool_call>"),
    ("xml", "<tool_call>\n<function=>\n</function>\n</tool_call>"),
    ("llama", '{"name": "unknown", "parameters": {}}'),
    ("llama", '{"name": "f", "parameters": {}} is what I would call'),
    ("llama", '<|python_tag|>print("f")'),
    ("llama", 'Say {"name": "f", "parameters": {}}'),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}'),
    ("mistral", "[TOOL_CALLS] nothing"),
    ("none", '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'),
]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_calls_are_read_in_any_pieces(data: st.DataObject) -> None:
    style, text, content, calls = data.draw(st.sampled_from(CALLS))
    reasoning = data.draw(st.sampled_from(["", "well,\n\nso"]))
    text = f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parser = read(text, Style(calls=style, reasoning=bool(reasoning)), cuts)
    assert (parser.reasoning, parser.content, parser.calls) == (reasoning, content, calls)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_no_call_remains_text_to_the_last_letter(data: st.DataObject) -> None:
    style, text = data.draw(st.sampled_from(TEXTS))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parser = read(text, Style(calls=style), cuts)
    assert parser.content == text and not parser.calls


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab<>/think \n", max_size=30), data=st.data())
def test_pieces_never_matter(text: str, data: st.DataObject) -> None:
    style = Style(calls="hermes", reasoning=True)
    stop, thinking = data.draw(st.lists(st.text("ab<", min_size=1, max_size=3), max_size=2)), data.draw(st.booleans())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces, whole = (
        read(text, style, cuts, stop=stop, thinking=thinking),
        read(text, style, stop=stop, thinking=thinking),
    )
    assert (pieces.content, pieces.reasoning, pieces.stop) == (whole.content, whole.reasoning, whole.stop)


def test_without_tools_nothing_is_a_call() -> None:
    parser = read('{"name": "f", "parameters": {}}', Style(calls="llama"), tools=None)
    assert parser.content and not parser.calls


def test_the_earliest_stop_string_ends_the_answer_before_it() -> None:
    parser = read("one two three", Style(), [5], stop=["three", "wo", "two"])
    assert (parser.content, parser.stop) == ("one ", "two")
    assert read("one tw", Style(), stop=["two"]).content == "one tw", "what only began to be one is text"
    assert read("aab", Style(), [1, 2], stop=["ab"]).content == "a"


@pytest.mark.parametrize(("style", "text"), [(style, text) for style, text, _, calls in CALLS if len(calls) == 2])
def test_a_single_call_ends_the_answer(style: CallStyle, text: str) -> None:
    parser = AnswerParser(Style(calls=style), tools=TOOLS, types=TYPES, single=True)
    for letter in text:
        parser.feed(letter)
    if not parser.over:  # name[ARGS]{…} ends where its next begins
        parser.finish()
    assert [call.name for call in parser.calls] == ["f"]


def test_thoughts_that_do_not_end_are_no_content() -> None:
    assert read("<think>a", Style(reasoning=True)).reasoning == "a"
    parser = read("a</think>b", Style(reasoning=True), thinking=True)
    assert (parser.reasoning, parser.content) == ("a", "b")
    assert read("b<think>a</think>", Style(reasoning=True)).content == "b<think>a</think>", "at the beginning only"


def test_the_style_is_what_the_template_shows() -> None:
    shown = {path.stem: detect(path.read_text()) for path in TEMPLATES.glob("*.jinja")}
    assert {name: style.calls for name, style in shown.items()} == {
        "qwen2.5": "hermes", "qwen3": "hermes", "qwen3-coder": "xml", "qwen3.5": "xml", "qwq": "hermes",
        "llama-3.1": "llama", "llama-3.2": "llama",
        "mistral-nemo": "mistral", "mistral-small-3.2": "mistral", "gemma-2": "none",
    }  # fmt: skip
    assert {name for name, style in shown.items() if style.reasoning} == {"qwen3", "qwen3.5", "qwq"}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("s", "3", "3"), ("s", "a\n\nb", "a\n\nb"), ("s", "", ""), ("s", "null", "null"),
        ("n", "3", 3), ("n", " -3 ", -3), ("n", "3.5", "3.5"), ("n", "true", "true"), ("n", "three", "three"),
        ("x", "3", 3), ("x", "2.5e3", 2500.0), ("b", "true", True), ("b", "False", False), ("b", "1", "1"),
        ("o", '{"a": [1]}', {"a": [1]}), ("o", "None", None), ("o", "null", None), ("o", "{'a': 1}", "{'a': 1}"),
        ("l", "[1, 2]", [1, 2]), ("l", "{}", "{}"), ("l", "[" * 5000, "[" * 5000), ("m", "3", "3"), ("any", "3", "3"),
        ("odd", "3", "3"), ("new", "[1]", "[1]"),
    ],
)  # fmt: skip
def test_a_parameter_in_xml_is_what_its_tool_says_it_is(key: str, text: str, value: Any) -> None:
    call = f"<tool_call>\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    (found,) = read(call, Style(calls="xml")).calls
    assert json.loads(found.arguments) == {key: value}
    assert type(json.loads(found.arguments)[key]) is type(value)


@pytest.mark.parametrize("name", [None, "f"])
def test_a_call_in_xml_that_was_begun_for_the_model_can_be_ended_by_it(name: str | None) -> None:
    begun = Style(calls="xml").opening(name, thinking=False)
    rest = ("" if name else "=f>\n") + "<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>"
    assert read(begun + rest, Style(calls="xml")).calls == [Call("f", '{"n": 1}')]


@pytest.mark.parametrize("style", ["hermes", "llama", "mistral"])
def test_a_call_that_was_begun_for_the_model_can_be_ended_by_it(style: CallStyle) -> None:
    for name in (None, 'f"'):
        begun = Style(calls=style).opening(name, thinking=False)
        member = "parameters" if style == "llama" else "arguments"
        rest = ' {"a": 1}}' if name else f' {json.dumps("f")}, "{member}": {{"a": 1}}}}'
        rest += {"hermes": "\n</tool_call>", "mistral": "]", "llama": ""}[style]
        parser = read(begun + rest, Style(calls=style), tools=frozenset({"f", 'f"'}))
        assert parser.calls == [Call(name or "f", '{"a": 1}')]
