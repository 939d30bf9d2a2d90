"""Tool calls written as XML, as Qwen3-Coder and its like do.

In: what stands between <tool_call> and its end, and the tools' definitions. Out: the call with its arguments as a JSON
object, or None. Pure. Leaves finding calls in an answer to answer.py.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

A value is text, less the line break at either end. What it is as JSON is for the tool's definition to say: text where
its type is, or may be, a string, or where the definition is silent; else the JSON value that it is, True and False and
None in any case, since chat templates write them so. Text that is no value of that type remains a string: a tool
answers for what it cannot take, and nothing is mended.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Types = Mapping[str, Mapping[str, frozenset[str]]]
"""By tool and parameter: the JSON types that the definition names; none where it names none."""

END = re.compile(r"</function>\s*</tool_call>")
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|</function>))", re.DOTALL)
_CLOSE = re.compile(r"\s*</function>\s*")
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
_PYTHON = {"true": True, "false": False, "none": None, "null": None}


def types(tools: Iterable[tuple[str, Mapping[str, Any]]]) -> Types:
    """Of tools, each by its name and the JSON schema of its arguments."""
    return {name: {key: _named(schema) for key, schema in _properties(of).items()} for name, of in tools}


def begun(inside: str) -> bool:
    """A call has begun there: what looks like its end may be the text of a parameter, until END has come."""
    return _FUNCTION.match(inside) is not None


def read(inside: str, types: Types) -> tuple[str, str] | None:
    """Name and arguments of the call; None where this is none."""
    opening = _FUNCTION.match(inside)
    if opening is None:
        return None
    name, at = opening[1], opening.end()
    known, arguments = types.get(name, {}), dict[str, Any]()
    while (found := _PARAMETER.match(inside, at)) is not None:
        arguments[found[1]] = _value(found[2], known.get(found[1], frozenset()))
        at = found.end()
    if _CLOSE.fullmatch(inside, at) is None:
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _value(text: str, types: frozenset[str]) -> Any:
    if not types or "string" in types:
        return text
    bare = text.strip()
    try:
        value = _PYTHON[bare.lower()] if bare.lower() in _PYTHON else json.loads(bare)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, bool):
        return value if "boolean" in types else text
    return value if any(isinstance(value, _JSON_TYPES.get(each, ())) for each in types) else text


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def _named(schema: Any) -> frozenset[str]:
    """The types that a parameter's schema names, those of anyOf and oneOf included."""
    if not isinstance(schema, dict):
        return frozenset()
    said = schema.get("type")
    found = {said} if isinstance(said, str) else {each for each in said or () if isinstance(each, str)}
    for several in ("anyOf", "oneOf"):
        for each in schema.get(several) or ():
            found |= _named(each)
    return frozenset(found)
