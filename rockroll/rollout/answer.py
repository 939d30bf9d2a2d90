"""What a model's text says: reasoning, content and tool calls, taken apart as it comes.

In: the text of one answer in any pieces, and the style in which its family writes calls. Out: Deltas, and the whole:
content, reasoning, calls, the stop string that ended it. Pure. Leaves tokens to answering.py.

    style     a call                                                          its family
    hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call>, any number   Qwen, Hermes
    xml       <tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>, any number   Qwen
    llama     {"name": …, "parameters": {…}} and nothing else, with or without <|python_tag|> before it   Llama 3
    mistral   [TOOL_CALLS] [{"name": …, "arguments": {…}}, …] or [TOOL_CALLS]name[ARGS]{…}, at the end     Mistral

Reasoning is what stands between <think> and </think> at the very beginning; where the prompt has opened it already,
everything up to </think>. What begins like a call and is none (no JSON object, no name, no end) remains text: nothing
is mended. Whitespace between content and calls is neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rockroll.rollout import xml_calls

CallStyle = Literal["hermes", "xml", "llama", "mistral", "none"]
OPEN, CLOSE = "<think>", "</think>"
_CALL, _END = "<tool_call>", "</tool_call>"
_MISTRAL, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_PYTHON = "<|python_tag|>"
_JSON = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one model family writes its answers."""

    calls: CallStyle = "none"
    reasoning: bool = False
    """It thinks between <think> and </think>."""
    named: bool = False
    """mistral: calls are written name[ARGS]{…}."""

    def opening(self, name: str | None, *, thinking: bool) -> str:
        """How an answer begins that is a call, of the tool `name` where one is given: as far as that is certain.

        It ends where the model's own tokens would: before the space and the quotes of what is still open.
        """
        thought = ""
        if self.reasoning:
            thought = f"\n{CLOSE}\n\n" if thinking else f"{OPEN}\n\n{CLOSE}\n\n"
        if self.calls == "xml":
            return f"{thought}{_CALL}\n<function" + ("" if name is None else f"={name}>\n")
        said = "" if name is None else f" {json.dumps(name, ensure_ascii=False)},"
        member = "" if name is None else ' "parameters":' if self.calls == "llama" else ' "arguments":'
        begun = '{"name":' + said + member
        if self.calls == "mistral":
            begun = _MISTRAL + ((f"{name}{_ARGS}" if name else "") if self.named else "[" + begun)
        return thought + (f"{_CALL}\n{begun}" if self.calls == "hermes" else begun)


@dataclass(frozen=True)
class Call:
    """A tool call as the model wrote it."""

    name: str
    arguments: str
    """A JSON object, letter by letter the model's; xml: made of its parameters."""
    id: str = ""
    """The model's own id of it, where its family writes one."""


@dataclass
class Said:
    """What is new since the last time."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls)


def detect(template: str) -> Style:
    """The style in which a chat template writes an answer's parts."""
    calls: CallStyle = "none"
    if _MISTRAL in template:
        calls = "mistral"
    elif _CALL in template:
        calls = "xml" if "<function=" in template else "hermes"
    elif _PYTHON in template or '"parameters": ' in template:
        calls = "llama"
    return Style(calls=calls, reasoning=CLOSE in template, named=_ARGS in template)


class AnswerParser:
    """One answer. `feed` its text, then `finish`; what they return, joined, is content, reasoning and calls.

    tools: names that may be called; None: calls are not looked for. stop: strings before which the answer ends.
    types: what the parameters of those tools are, for the xml style.
    thinking: the prompt ends within reasoning. single: the answer ends after its first call.
    `over` is True once a stop string or the only call has ended the answer; later text is not looked at.
    """

    def __init__(
        self,
        style: Style,
        *,
        tools: frozenset[str] | None = None,
        types: xml_calls.Types | None = None,
        stop: Sequence[str] = (),
        thinking: bool = False,
        single: bool = False,
    ) -> None:
        self.content, self.reasoning = "", ""
        self.calls: list[Call] = []
        self.stop: str | None = None
        """The stop string that ended the answer."""
        self.over = False
        self._calls: CallStyle = style.calls if tools is not None else "none"
        self._tools, self._types, self._single = tools or frozenset(), types or {}, single
        self._stops = [s for s in stop if s]
        self._unstopped = ""
        """Text that may be the beginning of a stop string."""
        self._rest = ""
        """Text that was not taken apart yet."""
        self._space = ""
        """Whitespace that belongs to the content if more of it comes."""
        self._state = "thinking" if thinking else "start" if style.reasoning else "content"

    def feed(self, text: str) -> Said:
        """Take the next piece of the answer."""
        said = Said()
        if not self.over:
            self._take(self._before_stop(text), said)
            if self.over:
                self._last(said)
        return said

    def finish(self) -> Said:
        """There is no more: what was held back is text after all."""
        said = Said()
        if not self.over:
            self._take(self._unstopped, said)
            self._last(said)
            self.over = True
        return said

    # ---- stop strings ----------------------------------------------------------------------------------------

    def _before_stop(self, text: str) -> str:
        if not self._stops:
            return text
        text = self._unstopped + text
        # The one that is whole first, as a reader of single characters would see it; of two, the longer.
        found = [(at + len(s), at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            _, at, self.stop = min(found)
            self.over, self._unstopped = True, ""
            return text[:at]
        held = max(_overlap(text, s) for s in self._stops)
        self._unstopped = text[len(text) - held :]
        return text[: len(text) - held]

    # ---- parts -----------------------------------------------------------------------------------------------

    def _take(self, text: str, said: Said) -> None:
        self._rest += text
        while self._rest and self._step(said):
            pass

    def _step(self, said: Said) -> bool:
        """Take what can be told apart; False where more text is needed."""
        match self._state:
            case "start":
                bare = self._rest.lstrip()
                if bare.startswith(OPEN):
                    self._rest, self._state = bare[len(OPEN) :], "thinking"
                    return True
                if OPEN.startswith(bare):
                    return False
                self._state = "content"
                return True
            case "thinking":
                return self._think(said)
            case "call":
                return self._tagged(said)
            case "held":
                return self._single and self._first_of_list(said)
            case _:
                return self._text(said)

    def _think(self, said: Said) -> bool:
        thought, found, after = self._rest.partition(CLOSE)
        if found:
            self._tell_reasoning(thought, said, last=True)
            self._rest, self._state = after, "begin"
            return True
        held = _overlap(self._rest, CLOSE)
        self._tell_reasoning(self._rest[: len(self._rest) - held], said)
        self._rest = self._rest[len(self._rest) - held :]
        return False

    def _text(self, said: Said) -> bool:
        if self._state == "begin":  # after reasoning: the empty line between is neither
            self._rest = self._rest.lstrip("\n")
            if not self._rest:
                return False
            self._state = "content"
        if self._calls == "llama" and not self.content and not self._space:
            bare = self._rest.lstrip()
            if bare.startswith((_PYTHON, "{")):
                self._state = "held"
                return True
            if not bare or _PYTHON.startswith(bare):
                return False
        mark = {"hermes": _CALL, "xml": _CALL, "mistral": _MISTRAL}.get(self._calls)
        if mark is None:
            self._tell(self._rest, said)
            self._rest = ""
            return False
        before, found, after = self._rest.partition(mark)
        if found:
            self._tell(before, said)
            self._rest, self._state = found + after, "call" if mark == _CALL else "held"
            return True
        held = _overlap(self._rest, mark)
        self._tell(self._rest[: len(self._rest) - held], said)
        self._rest = self._rest[len(self._rest) - held :]
        return False

    def _tagged(self, said: Said) -> bool:
        """A call between <tool_call> and its end."""
        inside, found, after = self._rest.removeprefix(_CALL).partition(_END)
        if self._calls == "xml" and (end := xml_calls.END.search(inside + found + after)):
            whole = inside + found + after  # the text of a parameter may hold what ends a call
            inside, after = whole[: end.end() - len(_END)], whole[end.end() :]
        elif not found or (self._calls == "xml" and xml_calls.begun(inside)):
            return False
        call = _hermes_call(inside) if self._calls == "hermes" else _xml_call(inside, self._types)
        self._state = "content"
        if call is None:
            self._tell(_CALL + inside + _END, said)
            self._rest = after
            return True
        self._add(call, said)
        self._rest = after
        if self._single:
            self.over, self._rest = True, ""
            return False
        return True

    def _first_of_list(self, said: Said) -> bool:
        """The first call of Mistral's list, as soon as it is whole."""
        if self._calls != "mistral":
            return False
        inside = self._rest.removeprefix(_MISTRAL).lstrip()
        calls = _list_calls(inside, first=True) if inside.startswith("[") else _named_calls(inside, first=True)
        if calls:
            self._add(calls[0], said)
            self.over, self._rest = True, ""
        return False

    def _last(self, said: Said) -> None:
        """Decide about what waited for more."""
        rest, self._rest = self._rest, ""
        if self._state == "thinking":
            self._tell_reasoning(rest, said, last=True)
        elif self._state == "held":
            for call in self._held_calls(rest) or ():
                self._add(call, said)
                rest = ""
        if self._state != "thinking":
            self._tell(rest, said)
        if not self.calls:
            said.text += self._space
            self.content += self._space
        self._space = ""

    def _held_calls(self, text: str) -> list[Call] | None:
        if self._calls == "llama":
            call = _llama_call(text.strip().removeprefix(_PYTHON).strip())
            return [call] if call and call.name in self._tools else None
        calls: list[Call] = []
        for part in text.split(_MISTRAL)[1:]:
            inside = part.strip()
            more = _list_calls(inside) if inside.startswith("[") else _named_calls(inside)
            if not more:
                return None
            calls += more
        return calls[:1] if self._single else calls

    # ---- telling ---------------------------------------------------------------------------------------------

    def _add(self, call: Call, said: Said) -> None:
        self._space = ""
        self.calls.append(call)
        said.calls.append(call)

    def _tell(self, text: str, said: Said) -> None:
        if self.calls:
            text = text if self._space or self.content else text.lstrip()
        text = self._space + text
        # Only where calls may come is trailing whitespace in doubt.
        kept = text if self._calls == "none" else text.rstrip()
        self._space = text[len(kept) :]
        self.content += kept
        said.text += kept

    def _tell_reasoning(self, text: str, said: Said, *, last: bool = False) -> None:
        """The newlines at its edges belong to the tags."""
        text = self._space + text
        if not self.reasoning:
            text = text.lstrip("\n")
        kept = text.rstrip("\n")
        self._space = "" if last else text[len(kept) :]
        self.reasoning += kept
        said.reasoning += kept


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0


def _value(text: str, at: int) -> tuple[Any, int] | None:
    """The JSON value that begins at `at`, and where it ends."""
    try:
        return _JSON.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _member(text: str, at: int, wanted: str) -> str | None:
    """The text, as written, of one member's value in the JSON object that begins at `at`, which is known to parse."""
    at, found = _skip(text, at + 1), None
    while text[at] != "}":
        key, at = _JSON.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the colon
        _, end = _JSON.raw_decode(text, at)
        if key == wanted:
            found = text[at:end]  # the last of equal keys counts, as in json.loads
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _call_at(text: str, at: int, member: str) -> tuple[Call, int] | None:
    """The call in the JSON object at `at`, and where that ends; None where it is no call."""
    if at >= len(text) or text[at] != "{" or (got := _value(text, at)) is None:
        return None
    value, end = got
    name, arguments, id = value.get("name"), value.get(member), value.get("id")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return Call(name, _member(text, at, member) or "{}", id if isinstance(id, str) else ""), end


def _hermes_call(text: str) -> Call | None:
    got = _call_at(text, _skip(text, 0), "arguments")
    return got[0] if got and not text[got[1] :].strip() else None


def _xml_call(text: str, types: xml_calls.Types) -> Call | None:
    got = xml_calls.read(text, types)
    return None if got is None else Call(*got)


def _llama_call(text: str) -> Call | None:
    got = _call_at(text, 0, "parameters") or _call_at(text, 0, "arguments")
    return got[0] if got and not text[got[1] :].strip() else None


def _list_calls(text: str, *, first: bool = False) -> list[Call] | None:
    """Mistral's `[{…}, {…}]`; with `first`, one call where its end is there."""
    calls: list[Call] = []
    at = _skip(text, 1)
    while (got := _call_at(text, at, "arguments")) is not None:
        calls.append(got[0])
        if first:
            return calls
        at = _skip(text, got[1])
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] == "]" and not text[at + 1 :].strip():
            return calls
        else:
            break
    return None


def _named_calls(text: str, *, first: bool = False) -> list[Call] | None:
    """Mistral's newer `name[ARGS]{…}` and `name[CALL_ID]id[ARGS]{…}`."""
    name, found, arguments = text.partition(_ARGS)
    if not found or not name.strip() or not arguments.lstrip().startswith("{"):
        return None
    at = _skip(arguments, 0)
    got = _value(arguments, at)
    if got is None or (arguments[got[1] :].strip() and not first):
        return None
    name, _, id = name.partition(_ID)
    return [Call(name.strip(), arguments[at : got[1]], id.strip())]
