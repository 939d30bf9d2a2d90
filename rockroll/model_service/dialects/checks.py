"""What the dialects ask of a field, and the sentence that refuses it.

In: decoded fields. Out: values for a Call, or a ModelServiceError (status 400) whose `param` names the field. Leaves
the vendors' error shapes to their files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from rockroll.errors import ModelServiceError
from rockroll.model_service.wire import Tool

MAX_MESSAGES = 10_000
MAX_TOKENS = 2**31 - 1
MAX_COMPLETIONS = 16
"""The largest `n`: as many calls as a sandbox may have under way."""
MAX_STOPS = 64
MAX_TOOLS = 1024
_AT = re.compile(r" - at `\$\.?(.*?)`$")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")

T = TypeVar("T")
NOTHING = msgspec.Raw(b"null")
"""Raw fields: only whether they say anything matters, and skipping bytes allocates nothing."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ModelServiceError:
    return ModelServiceError(message, status=400, type="invalid_request_error", code=code, param=param)


def decode(decoder: Callable[[bytes], T], body: bytes, needed: str) -> T:
    """The body as `decoder`'s type. needed: the field that is always there, for the sentence that refuses."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise bad_request(f"the body is not JSON: {error}; send a JSON object with `{needed}`") from None
    except RecursionError:
        raise bad_request(f"the body is nested too deeply; send a JSON object with `{needed}`") from None


def _misfit(message: str) -> ModelServiceError:
    """msgspec's "Expected `int`, got `str` - at `$.max_tokens`" as a sentence that begins with the field."""
    at = _AT.search(message)
    param = at.group(1) if at else ""
    text = _AT.sub("", message)
    text = text[:1].lower() + text[1:]
    if len(text) > 200:
        text = text[:200] + "…"
    return bad_request(f"{param or 'the body'}: {text}", param or None)


def says_something(raw: msgspec.Raw) -> bool:
    return raw is not NOTHING and bytes(raw).translate(None, b" \t\r\n") not in (b"null", b"[]", b"{}", b"false", b"0")


def refuse_raw(said: Any, names: Iterable[str], why: str) -> None:
    """Refuses each Raw field of these that says something."""
    for name in names:
        if says_something(getattr(said, name)):
            raise bad_request(f"{name}: {why}", name)


def refuse_unless(said: Any, neutral: dict[str, Any]) -> None:
    """Refuses each of these fields that is neither left out nor at the value that changes nothing."""
    for name, value in neutral.items():
        if getattr(said, name) not in (None, value):
            raise bad_request(f"{name}: only {value:g} is supported, got {getattr(said, name):g}; leave it out", name)


def short(value: int) -> str:
    return str(value) if abs(value) < 10**20 else "a larger number"


def at_least_1(name: str, value: int | None, most: int = MAX_TOKENS) -> int | None:
    if value is not None and not 1 <= value <= most:
        raise bad_request(f"{name}: at least 1 (and at most {most}) is needed, got {short(value)}", name)
    return value


def top_p(value: float | None) -> float | None:
    if value == 0:
        raise bad_request("top_p: more than 0 is needed; for greedy decoding say temperature 0", "top_p")
    return within("top_p", value, 0, 1, "1 takes the whole distribution")


def within(name: str, value: float | None, low: int, high: int, hint: str) -> float | None:
    if value is not None and not low <= value <= high:
        raise bad_request(f"{name}: between {low} and {high} is needed ({hint}), got {value:g}", name)
    return value


def seed(value: int | None) -> int | None:
    if value is not None and not -(2**63) <= value < 2**63:
        raise bad_request(f"seed: a 64-bit integer is needed, got {short(value)}", "seed")
    return value


def stops(name: str, said: str | list[str] | None) -> list[str]:
    found = [said] if isinstance(said, str) else said or []
    if len(found) > MAX_STOPS:
        raise bad_request(f"{name}: at most {MAX_STOPS} strings are taken, got {len(found)}", name)
    for each in found:
        if not each or len(each) > 1000:
            raise bad_request(f"{name}: a stop string has 1 to 1000 characters, got {len(each)}", name)
    return found


def tool(at: str, name: str, description: str | None, parameters: dict[str, Any] | None) -> Tool:
    if not _TOOL_NAME.fullmatch(name):
        raise bad_request(
            f"{at}.name: letters, digits, `_` and `-` are taken, 1 to 128 of them; got {name[:64]!r}", f"{at}.name"
        )
    try:
        msgspec.msgpack.encode(parameters)
    except (OverflowError, ValueError, RecursionError):
        raise bad_request(
            f"{at}.parameters: a number has more than 64 bits, or it is nested too deeply", f"{at}.parameters"
        ) from None
    return Tool(name=name, description=description or "", parameters=parameters or {})


def tools(name: str, found: list[Tool]) -> list[Tool]:
    if len(found) > MAX_TOOLS:
        raise bad_request(f"{name}: at most {MAX_TOOLS} are taken, got {len(found)}", name)
    names = [each.name for each in found]
    if twice := next((each for each in names if names.count(each) > 1), None):
        raise bad_request(f"{name}: the name {twice[:128]!r} is given twice", name)
    return found


def choice(param: str, said: str, found: list[Tool]) -> str:
    """tool_choice as the wire says it; refused where no tool can be what it asks for."""
    if said == "required" and not found:
        raise bad_request(f"{param}: a tool call is required, but `tools` has none", param)
    if said.startswith("=") and said[1:] not in {each.name for each in found}:
        raise bad_request(f"{param}: `tools` has no {said[1:129]!r}", param)
    return said
