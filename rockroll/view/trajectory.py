"""One episode to be read: as a conversation, and token by token.

In: a record of RUN_DIR/episodes as it is in the file, and the model's vocabulary. Out: blocks of a conversation; tokens
as markup, coloured by classes. Pure. A record may lack any field: what another version wrote is shown as far as it
goes. Leaves pages to pages.py.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from rockroll.view.chart import number
from rockroll.view.text import shortened, visible
from rockroll.view.vocabulary import Vocabulary

WINDOW = 2000
"""Tokens on one page."""
UNLIKELY = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Where the shades of a log-prob begin: class l1 from -0.01 down, l7 from -8 down."""
STRONG = (0.05, 0.5, 1.0, 2.0)
"""Where the shades of an advantage begin, either sign: p1 from 0.05, n4 from -2 down."""
VERSIONS = 8
"""Colours of weight versions, used in turn."""
_ROLE = re.compile(r"(system|developer|user|human|assistant|model|tool|ipython|observation|environment)")
_HEADED = re.compile(r"\s*(system|developer|user|human|assistant|model|tool|ipython|environment)\s*(?:\n|$)")
_RESPONSE = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.S)
_NAMED = {"[INST]": "user", "[TOOL_RESULTS]": "tool", "[AVAILABLE_TOOLS]": "tools", "[SYSTEM_PROMPT]": "system"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One message, or one answer of the model."""

    kind: str
    """answer, output (of a command or tool), or message."""
    title: str
    text: str
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """(name of the tool, its arguments)."""
    facts: list[str] = field(default_factory=list)
    start: int = 0
    """Its first token."""


@dataclass(frozen=True)
class Branch:
    """One line of the episode's conversation: parallel lists, and spans."""

    ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    versions: list[int]
    answers: list[tuple[int, int, int]]
    """(number, start, end): what was sampled, here or in another branch."""
    advantages: list[tuple[int, int, float]]
    """(start, end, advantage); empty where none are recorded."""
    agent: str = ""
    """Whose conversation it is, where several agents worked."""

    @property
    def shown_versions(self) -> list[int]:
        """Weight versions that sampled tokens of it."""
        return sorted({version for version in self.versions if version >= 0})

    def advantage(self, token: int) -> float | None:
        at = bisect.bisect_right(self.advantages, token, key=lambda span: span[0]) - 1
        if at < 0 or token >= self.advantages[at][1]:
            return None
        return self.advantages[at][2]


def branches(record: dict[str, Any]) -> list[Branch]:
    """Of a record's samples; lists of unequal lengths are filled up."""
    spans = record.get("advantages") or []
    return [
        _branch(sample, spans[i] if i < len(spans) else [])
        for i, sample in enumerate(record.get("samples") or [])
        if isinstance(sample, dict) and sample.get("ids")
    ]


def _branch(sample: dict[str, Any], spans: Sequence[Sequence[float]]) -> Branch:
    ids = [int(id) for id in sample["ids"]]
    n = len(ids)
    mask = _filled(sample.get("mask"), n, False)
    turns = sample.get("turns") or []
    answers = [(int(t["number"]), int(t["start"]), int(t["end"])) for t in turns]
    if not answers:
        answers = [(i, start, end) for i, (start, end) in enumerate(_runs(mask))]
    return Branch(
        ids,
        mask,
        _filled(sample.get("logprobs"), n, 0.0),
        _filled(sample.get("versions"), n, -1),
        sorted(answers, key=lambda answer: answer[1]),
        [(int(start), int(end), float(value)) for start, end, value in spans],
        str(sample.get("agent") or ""),
    )


def _filled(found: list[Any] | None, n: int, value: Any) -> list[Any]:
    found = (found or [])[:n]
    return found + [value] * (n - len(found))


def _runs(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start = None
    for i, on in enumerate([*mask, False]):
        if on and start is None:
            start = i
        elif not on and start is not None:
            yield start, i
            start = None


# ---- a conversation ---------------------------------------------------------------------------------------------


def conversation(branch: Branch, words: Vocabulary, record: dict[str, Any], *, commands: bool = False) -> list[Block]:
    """commands: an answer is a command of the shell, and what follows it is what that printed."""
    out: list[Block] = []
    at = 0
    for number_, start, end in branch.answers:
        out += _messages(branch.ids[at:start], at, words, commands=commands and at > 0)
        out.append(_answer(branch, number_, start, end, words, record, commands))
        at = end
    return out + _messages(branch.ids[at:], at, words, commands=commands and at > 0)


def _messages(ids: Sequence[int], first: int, words: Vocabulary, *, commands: bool) -> list[Block]:
    """The messages in tokens that a template wrote, as far as its marks tell them apart."""
    out: list[Block] = []
    role, run, began = "", [], first

    def flush() -> None:
        nonlocal role, run
        text, run = words.text(run) if run else "", []
        if found := _HEADED.match(text):
            role, text = found[1], text[found.end() :]
        if not text.strip():
            return
        if commands and role == "user":
            role = "output"
        if inside := _RESPONSE.fullmatch(text):
            role, text = "output", inside[1]
        kind = "output" if role in ("output", "tool", "ipython", "observation", "environment") else "message"
        shown = shortened(visible(text.strip("\n")))
        out.append(Block(kind=kind, title=role or "context", text=shown, start=began))

    for i, id in enumerate(ids):
        mark = words.marks.get(id)
        if mark is None:
            if not run:
                began = first + i
            run.append(id)
            continue
        flush()
        named = _ROLE.search(mark.lower())
        if named or mark in _NAMED:
            role = _NAMED.get(mark) or (named[1] if named else "")
    flush()
    return out


def _answer(
    branch: Branch, number_: int, start: int, end: int, words: Vocabulary, record: dict[str, Any], commands: bool
) -> Block:
    reasoning, content, calls = words.answer(branch.ids[start:end])
    trained = [i for i in range(start, end) if branch.mask[i]]
    facts = [f"{end - start} tokens"]
    if trained:
        mean = sum(branch.logprobs[i] for i in trained) / len(trained)
        facts.append(f"mean log-prob {number(mean)}")
        versions = sorted({branch.versions[i] for i in trained})
        facts.append(f"weights {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else ""))
        values = [value for i in trained if (value := branch.advantage(i)) is not None]
        if values:
            same = min(values) == max(values)
            facts.append(f"advantage {number(values[0])}" if same else f"mean advantage {number(_mean(values))}")
    else:
        facts.append("not trained in this branch")
    rewards = record.get("turn_rewards") or []
    if number_ < len(rewards):
        facts.append(f"reward {number(float(rewards[number_]))}")
    return Block(
        kind="answer",
        title=f"command {number_ + 1}" if commands else f"answer {number_ + 1}",
        text=shortened(visible(content)),
        reasoning=shortened(visible(reasoning.strip())),
        calls=[(visible(call.name), shortened(visible(_arguments(call.arguments)))) for call in calls],
        facts=facts,
        start=start,
    )


def _arguments(text: str) -> str:
    """A tool call's arguments as a person reads them: a command as it is, else one a line."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if not isinstance(found, dict):
        return text
    if len(found) == 1 and isinstance(only := next(iter(found.values())), str):
        return only
    return json.dumps(found, indent=2, ensure_ascii=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- tokens -----------------------------------------------------------------------------------------------------


def tokens(branch: Branch, words: Vocabulary, start: int = 0, end: int | None = None) -> Markup:
    """ids[start:end], each with what is known of it in its title, and in its classes:

    s sampled and trained here, o sampled and trained in another branch; l0 … l7 by log-prob; p1 … p4, n1 … n4, z by
    advantage; v0 … v7 by weight version.
    """
    of_answers = [False] * len(branch.ids)
    for _, first, last in branch.answers:
        of_answers[first:last] = [True] * (last - first)
    colour = {version: i % VERSIONS for i, version in enumerate(branch.shown_versions)}
    out: list[str] = []
    for i in range(start, min(len(branch.ids), end if end is not None else len(branch.ids))):
        id = branch.ids[i]
        text = words.piece(id)
        mark = ' class="m"' if id in words.marks else ""
        shown = str(escape(text)).replace("\n", "⏎\n") or "∅"
        if not branch.mask[i]:
            kind = "o" if of_answers[i] else "c"
            out.append(f'<span class="{kind}" title="token {i}, id {id}"><b{mark}>{shown}</b></span>')
            continue
        logp, version, advantage = branch.logprobs[i], branch.versions[i], branch.advantage(i)
        classes = f"s l{bisect.bisect_right(UNLIKELY, -logp)} v{colour[version] if version >= 0 else 0}"
        said = f"token {i}, id {id}, log-prob {logp:.4g}"
        if advantage is not None:
            level = bisect.bisect_right(STRONG, abs(advantage))
            classes += f" {'p' if advantage > 0 else 'n'}{level}" if level else " z"
            said += f", advantage {advantage:+.4g}"
        out.append(f'<span class="{classes}" title="{said}, weight version {version}"><b{mark}>{shown}</b></span>')
    return Markup("".join(out))
