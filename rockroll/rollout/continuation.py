"""What follows an answer in its conversation, without rendering the conversation again.

In: a chat template, what kind of past a conversation has, one answer, and the messages after it. Out: the text
between that answer's end and the next one, or None where the template, rendering the whole, would no longer show the
past as it was. Leaves ids that were sampled, and who asks, to transcript.py.

The template is run on a short conversation of the same kind: a question, one stand-in for every kind of answer with
calls or reasoning that the past holds, a stand-in for the answer, and the real new messages. The past is kept where

    1. that rendering begins with the rendering of the same conversation before the answer, and
    2. read back from it, the answer is what it was: its reasoning, its content, its calls, nothing else, and
    3. what follows holds nothing of the stand-ins.

Qwen3, for instance, fails 2 once a user speaks after an answer with thoughts: it strips them. Mistral fails 1 where it
moves the tools to the last user's message. `prove` compares this with whole renderings of probing conversations, once,
when a tokenizer is made: a template that depends on anything else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from rockroll.errors import UsageError
from rockroll.rollout.answer import AnswerParser, Call, Style

Message = Mapping[str, Any]
"""What a chat template takes: "role" and "content", and whatever else the template knows."""

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "stand_in",
        "description": "Stands in.",
        "parameters": {"type": "object", "properties": {"argument": {"type": "string"}}, "required": ["argument"]},
    },
}


KEPT, SHORT = 4096, 512
"""So many continuations, and ids of texts, are remembered, of at most so many characters: an environment says few
things, and says them to every episode of a group."""


class Template(Protocol):
    """What this needs of a tokenizer."""

    style: Style
    thinking: bool
    """The prompt itself opens the reasoning."""
    stop_texts: dict[str, int]
    """Texts of the tokens that end an answer, and their ids."""

    def text(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> str: ...


class Shape(NamedTuple):
    """What kind of answer: which of its parts there are."""

    reasoning: bool
    content: bool
    calls: int


class Link(NamedTuple):
    """An answer of the past and who spoke after it."""

    shape: Shape
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Past:
    """What of a conversation a template's rendering of later messages may depend on; bounded, however long it is."""

    system: bool
    tools: bool
    links: tuple[Link, ...] = ()
    """Each kind once, where it was last; of answers of content alone the very last."""

    @staticmethod
    def of(messages: Sequence[Message], tools: bool) -> Past:
        """Of a conversation as a client wrote it."""
        past = Past(bool(messages) and messages[0].get("role") == "system", tools)
        at = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        for n, here in enumerate(at):
            beyond = at[n + 1] if n + 1 < len(at) else len(messages)
            past = past.then(_shape(messages[here]), messages[here + 1 : beyond])
        return past

    def then(self, shape: Shape, new: Sequence[Message]) -> Past:
        """After an answer of that shape and the messages behind it."""
        roles: list[str] = []
        for message in new:
            role = str(message.get("role"))
            if roles[-2:] != [role, role]:
                roles.append(role)
        link = Link(shape._replace(calls=min(shape.calls, 2)), tuple(roles))
        kept = [old for old in self.links if old != link and (old.shape.reasoning or old.shape.calls)]
        return replace(self, links=(*kept, link))


@dataclass(frozen=True)
class Following:
    """The text after an answer."""

    stop_id: int
    """What the template closes the answer with."""
    text: str
    """Everything from there to where the next answer begins."""


class Continuation:
    """The continuations of one template."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._begun: dict[Past, tuple[list[Message], str]] = {}
        self._known: dict[Any, Following | None] = {}

    def after(self, past: Past, answer: tuple[str, str, Sequence[Call]], new: Sequence[Message]) -> Following | None:
        """What follows `answer` (reasoning, content, calls; the calls' ids as `new` names them), up to the next one.

        None: the conversation does not go on from its past, or the template refuses it.
        """
        reasoning, content, calls = answer
        shape, names, said = Shape(bool(reasoning), bool(content), len(calls)), [c.name for c in calls], repr(new)
        if len(said) > SHORT:
            return self._after(past, shape, names, new, said)
        key = (past, shape, *names, said)
        if key not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[key] = self._after(past, shape, names, new, said)
        return self._known[key]

    def _after(
        self, past: Past, shape: Shape, names: Sequence[str], new: Sequence[Message], said: str
    ) -> Following | None:
        """said: `new`, as one text."""
        number = 0
        while f"answer{number}answer" in said:
            number += 1
        ids = [m["tool_call_id"] for m in new if m.get("role") == "tool" and m.get("tool_call_id")]
        named = [(name, ids[i] if i < len(ids) else f"call{i:05d}") for i, name in enumerate(names)]
        stand_in = _stand_in(shape, number, named)
        tools = [TOOL] if past.tools else None
        try:
            begun = self._begin(past)
            if begun is None:
                return None
            before, start = begun
            whole = self._template.text([*before, stand_in, *new], tools=tools)
        except UsageError:
            return None
        if not whole.startswith(start):
            return None
        ours = [s for s in _texts(stand_in) if s]
        end = max([len(start), *(whole.rfind(s) + len(s) for s in ours if whole.find(s, len(start)) >= 0)])
        found = [(at, text) for text in self._template.stop_texts if (at := whole.find(text, end)) >= 0]
        if not found:
            return None
        at, stop = min(found)
        rest = whole[at + len(stop) :]
        if any(s in rest for s in ours) or not self._shows(whole[len(start) : at], stand_in):
            return None
        return Following(self._template.stop_texts[stop], rest)

    def _begin(self, past: Past) -> tuple[list[Message], str] | None:
        """The short conversation up to the answer, and its rendering."""
        if past not in self._begun:
            messages: list[Message] = [{"role": "system", "content": "rules"}] if past.system else []
            messages.append({"role": "user", "content": "question"})
            for shape, roles in past.links:
                calls = [("stand_in", f"call{i:05d}") for i in range(shape.calls)]
                messages.append(_stand_in(shape, 0, calls))
                tool = iter(calls)
                for role in roles:
                    more = {"tool_call_id": next(tool, ("", "call00000"))[1]} if role == "tool" else {}
                    messages.append({"role": role, "content": "more", **more})
            tools = [TOOL] if past.tools else None
            if len(self._begun) >= 256:
                self._begun.clear()
            self._begun[past] = messages, self._template.text(messages, tools=tools)
        return self._begun[past]

    def _shows(self, section: str, stand_in: Message) -> bool:
        """Read back from the template's own text, the answer is this one."""
        calls = [c["function"] for c in stand_in.get("tool_calls", ())]
        parser = AnswerParser(
            self._template.style,
            tools=frozenset(c["name"] for c in calls) if calls else None,
            thinking=self._template.thinking,
        )
        parser.feed(section)
        parser.finish()
        return (
            parser.reasoning.strip() == stand_in.get("reasoning_content", "")
            and parser.content.strip() == stand_in["content"]
            and [(c.name, json.loads(c.arguments)) for c in parser.calls]
            == [(c["name"], c["arguments"]) for c in calls]
        )

    # ---- the proof -------------------------------------------------------------------------------------------

    def prove(self) -> str | None:
        """Compare with whole renderings of probing conversations; a sentence on the first that differs.

        Contents of answers alone must go on from their past unless the family thinks: else every turn would be a
        conversation of its own.
        """
        for system in (False, True):
            for tools in (False, True):
                for script in self._scripts(tools):
                    wrong = self._probe(system, tools, script)
                    if wrong:
                        return wrong
        return None

    def _scripts(self, tools: bool) -> list[list[tuple[Shape, tuple[str, ...]]]]:
        plain, style = Shape(False, True, 0), self._template.style
        scripts = [[(plain, ("user",))] * 3]
        if tools and style.calls != "none":
            call = Shape(False, False, 1)
            pair = Shape(False, True, 2)
            scripts += [
                [(call, ("tool",)), (call, ("tool",)), (plain, ("user",)), (call, ("tool",)), (plain, ("user",))],
                [(pair, ("tool", "tool")), (pair, ("tool", "tool", "user")), (plain, ("user",))],
            ]
        if style.reasoning:
            thought, called = Shape(True, True, 0), Shape(True, False, 1)
            scripts += [[(thought, ("user",)), (thought, ("user",)), (plain, ("user",))]]
            if tools and style.calls != "none":
                scripts += [[(called, ("tool",)), (called, ("tool",)), (thought, ("user",)), (called, ("tool",))]]
        return scripts

    def _probe(self, system: bool, with_tools: bool, script: Sequence[tuple[Shape, tuple[str, ...]]]) -> str | None:
        template = self._template
        tools = [TOOL] if with_tools else None
        messages: list[Message] = [{"role": "system", "content": "You help."}] if system else []
        messages.append({"role": "user", "content": "Do it: `ls /tmp`.\n"})
        try:
            sent, past = template.text(messages, tools=tools), Past.of(messages, with_tools)
            for number, (shape, roles) in enumerate(script):
                calls = [("stand_in", f"c{number:04d}{i:04d}") for i in range(shape.calls)]
                said = _stand_in(shape, 1000 + number, calls)
                ids = iter(id for _, id in calls)
                new: list[Message] = [
                    {"role": role, "content": f"output {number}\n  {i}", **_named(role, ids)}
                    for i, role in enumerate(roles)
                ]
                whole = template.text([*messages, said, *new], tools=tools)
                answer = (said.get("reasoning_content", ""), said["content"], [Call(name, "{}") for name, _ in calls])
                follows = self.after(past, answer, new)
                if follows is None:
                    plain = not (system or with_tools or template.style.reasoning)
                    if plain and shape == Shape(False, True, 0):
                        return _differ(sent, whole)
                    past = Past.of([*messages, said, *new], with_tools)
                else:
                    stop = next(text for text, id in template.stop_texts.items() if id == follows.stop_id)
                    end = stop + follows.text
                    section = whole[len(sent) : len(whole) - len(end)]
                    if not (whole.startswith(sent) and whole.endswith(end) and self._shows(section, said)):
                        return _differ(sent + section + end, whole)
                    past = past.then(shape, new)
                sent = whole
                messages += [said, *new]
        except UsageError:
            pass  # the family has no such conversations: they are refused when they come
        return None


def _shape(message: Message) -> Shape:
    return Shape(
        bool(message.get("reasoning_content")), bool(message.get("content")), len(message.get("tool_calls") or ())
    )


def _stand_in(shape: Shape, number: int, calls: Sequence[tuple[str, str]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": f"answer{number}answer" if shape.content else ""}
    if shape.reasoning:
        message["reasoning_content"] = f"thought{number}thought"
    if calls:
        message["tool_calls"] = [
            {
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": {"argument": f"value{number}value{i}value"}},
            }
            for i, (name, id) in enumerate(calls)
        ]
    return message


def _texts(stand_in: Message) -> list[str]:
    """What only a stand-in says."""
    values = [call["function"]["arguments"]["argument"] for call in stand_in.get("tool_calls", ())]
    return [stand_in["content"], stand_in.get("reasoning_content", ""), *values]


def _named(role: str, ids: Any) -> dict[str, str]:
    return {"tool_call_id": next(ids, "c00000000")} if role == "tool" else {}


def _differ(ours: str, whole: str) -> str:
    """Where two texts part; the tokenizer puts it in its words."""
    at = next((i for i, (a, b) in enumerate(zip(ours, whole, strict=False)) if a != b), min(len(ours), len(whole)))
    return f"{whole[:at][-24:]!r} is followed by {ours[at : at + 16]!r} turn by turn and {whole[at : at + 16]!r} whole"
