"""A method's body as the parts of an HTTP request, and back: the same code on both sides.

In: a Route and a Struct of wire/, or a path, a query and a JSON body. Out: the other of the two; UsageError for what
does not fit. Leaves carrying to client.py and endpoints.py.

Bytes in a query are percent-encoded as they are. In a JSON request a field of bytes is either text under its own name,
or base64 under NAME_base64. In JSON replies bytes are always base64. A file's mode is octal digits in requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import msgspec

from rockroll.errors import UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.http.routes import PREFIX, ROUTES, Route
from rockroll.sandbox.linux.signals import number_of

SHOWN = {"labels": "label"}
"""Fields that a query calls by another name."""


class Asked(NamedTuple):
    """A request, decoded."""

    body: wire.Struct
    lease: str | None
    command_id: str | None
    named: frozenset[str]
    """Fields that the query gave."""


class Request(NamedTuple):
    """A request to send."""

    verb: str
    url: str
    """Path and query, percent-encoded."""
    json: bytes | None


class Codec:
    """Of one route."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.struct = wire.BODIES[route.method]
        fields = {field.name: field for field in msgspec.structs.fields(self.struct)}
        self.path_fields = {name: fields[name] for name in re.findall(r"{(\w+)}", route.path)}
        self.query_fields = {SHOWN.get(name, name): fields[name] for name in route.query}
        raw = {"data"} if route.shape == "write" else set[str]()
        owner = {"owner"} if route.leased else set[str]()
        elsewhere = {*self.path_fields, *route.query, *route.fixed, *route.unused, *raw, *owner}
        self.content = {name: field for name, field in fields.items() if name not in elsewhere}
        self.json_type = self._json_type()
        self._decoder = msgspec.json.Decoder(self.json_type) if self.json_type else None

    def _json_type(self) -> type[msgspec.Struct] | None:
        """What the JSON body must be; None where there is none."""
        found: list[Any] = []
        for name, field in self.content.items():
            if _is_bytes(field.type):
                found += [(name, str | None, None), (f"{name}_base64", bytes | None, None)]
            elif (self.route.method, name) == ("command.signal", "signal"):
                found.append((name, int | str))
            elif name == "mode":
                found.append((name, str, f"{field.default:o}"))
            elif field.required:
                found.append((name, field.type))
            elif field.default_factory is not msgspec.NODEFAULT:
                found.append((name, field.type, msgspec.field(default_factory=field.default_factory)))
            else:
                found.append((name, field.type, field.default))
        if self.route.leased:
            found.append(("lease", str | None, None))
        if self.route.runs:
            found.append(("command_id", str | None, None))
        if not found:
            return None
        return msgspec.defstruct(
            f"{self.struct.__name__}Request", found, frozen=True, kw_only=True, forbid_unknown_fields=True
        )

    # -- the server's side

    def decode(self, path: Mapping[str, str], query: bytes, content: bytes = b"") -> Asked:
        """UsageError for a name that there is not, one that is missing, or a value that cannot be."""
        values: dict[str, Any] = dict(self.route.fixed)
        for name, field in self.path_fields.items():
            values[name] = _of_text(name, path[name].encode("utf-8", "surrogateescape"), field.type)
        asked = self._query(query)
        values |= asked
        if self.route.shape == "write":
            values["data"] = b""
        lease = command_id = None
        if self._decoder is not None:
            try:
                got = self._decoder.decode(content or b"{}")
            except msgspec.DecodeError as error:
                raise UsageError(f"the body of {self.route.verb} {self.route.path} is a JSON object: {error}") from None
            lease, command_id = getattr(got, "lease", None), getattr(got, "command_id", None)
            values |= self._content(got)
        if self.route.leased:
            values["owner"] = "connection" if lease else "detached"
        elif self.route.method == "command.start":
            command_id = None
        return Asked(self.struct(**values), lease, command_id, frozenset(asked))

    def _query(self, query: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pair in filter(None, query.split(b"&")):
            # Not parse_qsl: its values are text, and a path may be any bytes.
            name, _, text = (unquote_to_bytes(part) for part in pair.replace(b"+", b" ").partition(b"="))
            key = name.decode("utf-8", "replace")
            field = self.query_fields.get(key)
            if field is None:
                raise UsageError(
                    f"{self.route.verb} {self.route.path} has no query {key!r};"
                    f" it has {', '.join(self.query_fields) or 'none'}"
                )
            if field.name == "labels":
                label, _, value = text.decode("utf-8", "replace").partition("=")
                found.setdefault("labels", {})[label] = value
            else:
                found[field.name] = _of_text(field.name, text, field.type)
        for key, field in self.query_fields.items():
            if field.required and field.name not in found:
                raise UsageError(f"{self.route.verb} {self.route.path} needs the query {key}, as in ?{key}=…")
        return found

    def _content(self, got: msgspec.Struct) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, field in self.content.items():
            value = getattr(got, name)
            if _is_bytes(field.type):
                encoded = getattr(got, f"{name}_base64")
                if value is not None and encoded is not None:
                    raise UsageError(f"{name} is text and {name}_base64 is bytes: give one of them")
                value = value.encode() if value is not None else encoded
                if value is None:
                    if field.required:
                        raise UsageError(f"{self.route.verb} {self.route.path} needs {name}, or {name}_base64")
                    value = field.default
            elif (self.route.method, name) == ("command.signal", "signal"):
                value = number_of(value)
            elif name == "mode":
                value = octal(value)
            values[name] = value
        return values

    # -- the client's side

    def encode(self, body: wire.Struct, *, lease: str | None = None) -> Request:
        path = self.route.path
        for name in self.path_fields:
            path = path.replace(f"{{{name}}}", quote(str(getattr(body, name)), safe=""))
        pairs: list[str] = []
        for key, field in self.query_fields.items():
            name, value = field.name, getattr(body, field.name)
            if not field.required and value == field.default:
                continue
            texts = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else [_text(name, value)]
            pairs += [f"{key}={quote(text, safe='/')}" for text in texts]
        content = None
        if self.json_type is not None:
            values: dict[str, Any] = {"lease": lease} if self.route.leased else {}
            for name in self.content:
                value = getattr(body, name)
                if isinstance(value, bytes):
                    try:
                        value = value.decode()
                    except UnicodeDecodeError:
                        name = f"{name}_base64"
                elif name == "mode":
                    value = f"{value:o}"
                values[name] = value
            content = msgspec.json.encode(values)
        query = f"?{'&'.join(pairs)}" if pairs else ""
        return Request(self.route.verb, f"{PREFIX}{path}{query}", content)

    def fits(self, body: wire.Struct) -> bool:
        """Whether this route stands for the body's fixed fields."""
        return all(getattr(body, name) == value for name, value in self.route.fixed.items())


def _is_bytes(type: Any) -> bool:
    return type is bytes or type == bytes | None


def _text(name: str, value: Any) -> str | bytes:
    if name == "mode":
        return f"{value:o}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, bytes) else str(value)


def octal(text: str) -> int:
    """Of a mode, as chmod takes it."""
    try:
        return int(text, 8)
    except ValueError:
        raise UsageError(f"mode: octal digits, as in 755; got {text!r}") from None


def _of_text(name: str, text: bytes, type: Any) -> Any:
    if _is_bytes(type):
        return text
    if name == "mode":
        return octal(text.decode("utf-8", "replace"))
    try:
        return msgspec.convert(text.decode(), type, strict=False)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: {error}; got {text.decode('utf-8', 'replace')!r}") from None


CODECS: dict[str, list[Codec]] = {}
"""By method."""
for _route in ROUTES:
    CODECS.setdefault(_route.method, []).append(Codec(_route))
