"""The OpenAPI page: every route with its parameters, bodies, replies and errors, from the table and the Structs.

In: the application. Out: its schema, made when it is first asked for. Leaves showing it to /docs. What the page says of
a field is the docstring under it.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any, get_args, get_origin

import msgspec
from fastapi import FastAPI
from pydantic import TypeAdapter

from rockroll.errors import SandboxLost, SandboxNotFound
from rockroll.sandbox import wire
from rockroll.sandbox.config import SandboxConfig
from rockroll.sandbox.http import frames
from rockroll.sandbox.http.answers import BYTES, EVENTS, LINES
from rockroll.sandbox.http.codec import CODECS, Codec
from rockroll.sandbox.http.failure import STATUS, Failed, Failure
from rockroll.sandbox.http.routes import PREFIX, Held
from rockroll.sandbox.http.tar import TAR

REF = "#/components/schemas/{name}"
INTRODUCTION = """\
Sealed sandboxes on this host. Every call but this page needs the header `Authorization: Bearer TOKEN`.

* **Bytes.** Files travel as they are. In JSON answers `stdout`, `stderr` and `data` are base64. In JSON requests text
  is given as `command`, `stdin`, `data`, `path`, and bytes that are no text as `command_base64` and so on.
* **Errors** are `{"error": {"type", "message", "fields"}}`; `type` is the class that the Python SDK raises.
* **Owners.** A sandbox that is made with a `lease` is deleted when the lease ends; see `POST /v1/leases`.
* **Sending again.** A command with a `command_id` is run once, however often the request is sent.
* `{id}` is a sandbox's id, a unique beginning of it, or its name.
"""
TAGS = {
    "sandboxes": "Making, ending and looking at sandboxes.",
    "sessions": "Bash sessions that keep their state.",
    "commands": "Programs, and commands that go on without their caller.",
    "files": "Files and trees.",
    "snapshots": "Files of a sandbox, kept under a name.",
    "network": "Whom sandboxes reach, and who reaches them.",
    "node": "What is behind this API.",
}
Schema = dict[str, Any]


def describe(app: FastAPI) -> None:
    """From now on the application's page has the table's routes too."""
    plain = app.openapi

    def openapi() -> Schema:
        if app.openapi_schema is None:
            page = plain()
            page["info"]["description"] = INTRODUCTION
            page["tags"] = [{"name": name, "description": says} for name, says in TAGS.items()]
            components = page.setdefault("components", {})
            components.setdefault("schemas", {}).update(_schemas())
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            page["security"] = [{"token": []}]
            paths = page.setdefault("paths", {})
            paths.update(_lease_path())
            for codec in (codec for codecs in CODECS.values() for codec in codecs):
                route = codec.route
                paths.setdefault(f"{PREFIX}{route.path}", {})[route.verb.lower()] = _operation(codec)
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi


def _schemas() -> dict[str, Schema]:
    types: list[Any] = [Failed, Held]
    for codec in (codec for codecs in CODECS.values() for codec in codecs):
        types += [each for each in (codec.json_type, codec.route.reply) if each is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template=REF)
    schemas["SandboxConfig"] = TypeAdapter(SandboxConfig).json_schema()  # a dataclass whose unions msgspec may not take
    config = {"$ref": REF.format(name="SandboxConfig")}
    for name, schema in schemas.items():
        docs = _field_docs(_class_of(name))
        for field, described in schema.get("properties", {}).items():
            if says := docs.get(field.removesuffix("_base64")):
                described["description"] = says
            if described.get("contentEncoding") == "base64":
                described["description"] = f"Base64. {described.get('description', '')}".strip()
    schemas["CreateRequest"]["properties"]["config"] = {**config, "default": {}}
    for name in ("CreateRequest", "ForkRequest"):
        says = "The id of a lease: the sandbox is deleted when it ends. None: nobody owns the sandbox."
        schemas[name]["properties"]["lease"]["description"] = says
    for name in ("RunRequest", "ExecuteRequest"):
        says = "A name for it: then it goes on when the caller hangs up, and is run once, however often it is sent."
        schemas[name]["properties"]["command_id"]["description"] = says
    return schemas


def _class_of(name: str) -> type | None:
    """The class whose docstrings describe this schema."""
    known: dict[str, type] = {"SandboxConfig": SandboxConfig, "Failure": Failure, "Failed": Failed}
    return known.get(name) or getattr(wire, name.removesuffix("Request"), None)


def _field_docs(cls: type | None) -> dict[str, str]:
    """The docstring under each field of a class."""
    if cls is None:
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[field.target.id] = " ".join(value.value.split())
    return docs


def _operation(codec: Codec) -> Schema:
    route = codec.route
    summary, _, rest = route.says.partition(". ")
    found: Schema = {
        "tags": [route.tag],
        "operationId": re.sub(r"\W+", "_", f"{route.verb.lower()}{route.path}").strip("_"),
        "summary": summary.removesuffix("."),
        "description": rest or summary,
        "parameters": _parameters(codec),
        "responses": _responses(codec),
    }
    if body := _request_body(codec):
        found["requestBody"] = body
    return found


def _parameters(codec: Codec) -> list[Schema]:
    docs = _field_docs(codec.struct)
    found: list[Schema] = []
    for name in codec.path_fields:
        says = "A sandbox's id, a unique beginning of it, or its name." if name == "id" else docs.get(name, "")
        found.append({"name": name, "in": "path", "required": True, "description": says, "schema": {"type": "string"}})
    for name, field in codec.query_fields.items():
        if field.name == "mode":
            schema: Schema = {"type": "string", "pattern": "^[0-7]+$", "default": f"{field.default:o}"}
            says = "Octal digits, as chmod takes them."
        elif field.name == "labels":
            schema, says = {"type": "array", "items": {"type": "string"}}, "KEY=VALUE; may be given several times."
        elif field.type is bytes:
            schema, says = {"type": "string"}, "In the sandbox; percent-encoded, any bytes."
        else:
            schema, says = msgspec.json.schema(field.type), docs.get(field.name, "")
            if not field.required and field.default is not None and codec.route.shape != "read":
                schema["default"] = field.default
        found.append({"name": name, "in": "query", "required": field.required, "description": says, "schema": schema})
    return found


def _request_body(codec: Codec) -> Schema | None:
    if codec.route.shape == "write":
        return {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
    if codec.route.shape == "put":
        return {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (TAR, frames.PARTS)}}
    if codec.route.shape == "duplex":
        return {"content": {frames.PARTS: {"schema": {"type": "string", "format": "binary"}}}}
    if codec.json_type is None:
        return None
    content: Schema = {"schema": {"$ref": REF.format(name=codec.json_type.__name__)}}
    if codec.route.example is not None:
        content["example"] = codec.route.example
    return {"content": {"application/json": content}, "required": any(f.required for f in codec.content.values())}


def _responses(codec: Codec) -> Schema:
    route = codec.route
    binary = {"schema": {"type": "string", "format": "binary"}}
    good: Schema
    if route.shape == "read":
        good = {"200": {"description": "The bytes.", "content": {BYTES: binary}}}
    elif route.shape == "get":
        good = {"200": {"description": "The tree.", "content": {TAR: binary, frames.PARTS: binary}}}
    elif route.shape == "duplex":
        good = {"200": {"description": "What comes back.", "content": {frames.PARTS: binary}}}
    elif route.shape == "stream":
        item = get_args(route.reply)[0] if get_origin(route.reply) is list else route.reply
        content: Schema = {kind: {"schema": _ref(item)} for kind in (LINES, EVENTS)}
        if route.method in ("logs", "command.output"):
            content[BYTES] = binary
        good = {"200": {"description": "One object a line, or an event each, as they come.", "content": content}}
    elif route.reply is None:
        good = {"204": {"description": "Done."}}
    else:
        content = {"application/json": {"schema": _ref(route.reply)}}
        if route.runs:
            item = {"oneOf": [_ref(wire.OutputChunk), {"properties": {"result": _ref(wire.Observation)}}]}
            content |= {kind: {"schema": item} for kind in (LINES, EVENTS)}
        good = {str(route.status): {"description": "Done.", "content": content}}
    errors = [*route.raises, *((SandboxNotFound, SandboxLost) if "id" in codec.path_fields else ())]
    for cls in errors:
        status = str(next(STATUS[base] for base in cls.__mro__ if base in STATUS))
        says = f"{cls.__name__}: {' '.join((cls.__doc__ or '').split(' fields')[0].split())}"
        if status in good:
            good[status]["description"] += f" {says}"
        else:
            good[status] = {"description": says, "content": {"application/json": {"schema": _ref(Failed)}}}
    return good


def _ref(type: Any) -> Schema:
    (schema,), _ = msgspec.json.schema_components([type], ref_template=REF)
    return schema


def _lease_path() -> Schema:
    line = {"schema": _ref(Held)}
    says = (
        "The answer does not end: its first line is the lease's id, and empty lines follow. Read on as long as the"
        " sandboxes are needed: when the connection ends, however it ends, they are deleted."
    )
    good = {"200": {"description": "Held.", "content": {LINES: line}}}
    return {
        f"{PREFIX}/leases": {
            "post": {"tags": ["sandboxes"], "summary": "Holds a lease", "description": says, "responses": good}
        }
    }
