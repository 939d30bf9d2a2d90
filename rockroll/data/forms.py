"""What an example means: the conversations in it, and from where on their answers are learnt.

In: a mapping, and the objective. Out: one Conversation for sft, two for dpo, the chosen one first. Pure. Leaves tokens
to encode.py.

    sft   {"messages": [{"role", "content"}, …]}                      every answer of the assistant is learnt
          {"prompt": text or messages, "completion": text or messages}   the completion's
    dpo   {"prompt": …, "chosen": …, "rejected": …}                   two answers to one prompt
          {"chosen": [messages], "rejected": [messages]}              the messages that both begin with are the prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rockroll.errors import UsageError

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages; the assistant's from number `learnt` on are learnt."""

    messages: Sequence[Message]
    learnt: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()


def conversations(example: Mapping[str, Any], objective: Literal["sft", "dpo"], where: str) -> list[Conversation]:
    """Raises UsageError, beginning with `where`, for an example of no such form or with no answer to learn."""
    found = _sft(example, where) if objective == "sft" else _dpo(example, where)
    for conversation in found:
        if not any(m["role"] == "assistant" for m in conversation.messages[conversation.learnt :]):
            raise UsageError(f"{where}: there is no message of role assistant to learn from")
        if conversation.messages[0]["role"] == "assistant":
            raise UsageError(f"{where}: a conversation begins with a message of role user or system; got assistant")
    return found


def _sft(example: Mapping[str, Any], where: str) -> list[Conversation]:
    tools = tuple(example.get("tools") or ())
    if "messages" in example:
        return [Conversation(_messages(example["messages"], "user", where), 0, tools)]
    if "prompt" in example and "completion" in example:
        prompt = _messages(example["prompt"], "user", where)
        return [Conversation(prompt + _messages(example["completion"], "assistant", where), len(prompt), tools)]
    raise UsageError(f"{where}: an example for sft has messages, or prompt and completion; got {_keys(example)}")


def _dpo(example: Mapping[str, Any], where: str) -> list[Conversation]:
    if "chosen" not in example or "rejected" not in example:
        raise UsageError(f"{where}: an example for dpo has prompt, chosen and rejected; got {_keys(example)}")
    tools = tuple(example.get("tools") or ())
    answers = [_messages(example[name], "assistant", where) for name in ("chosen", "rejected")]
    if "prompt" in example:
        prompt = _messages(example["prompt"], "user", where)
        answers = [prompt + answer for answer in answers]
        learnt = len(prompt)
    else:
        pairs = enumerate(zip(*answers, strict=False))
        learnt = next((n for n, (a, b) in pairs if a != b), min(map(len, answers)))
    if answers[0] == answers[1]:
        raise UsageError(f"{where}: chosen and rejected are the same: there is nothing to prefer")
    return [Conversation(messages, learnt, tools) for messages in answers]


def _messages(value: Any, role: str, where: str) -> list[Message]:
    """A text is one message of that role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: messages are a text or a list of them; got {value!r:.80}")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(f"{where}: a message has a role and a content; got {message!r:.80}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise UsageError(f"{where}: a message's content is text; got {message.get('content')!r:.80}")
    return list(value)


def _keys(example: Mapping[str, Any]) -> str:
    return ", ".join(map(str, example)) or "nothing"
