"""The table of routes.py as endpoints.

In: requests. Out: answers, made from the node's replies. Leaves decoding to codec.py, waiting and streaming to
answers.py, owners to leases.py.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import PurePosixPath
from typing import Any, get_origin

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from rockroll import rpc
from rockroll.errors import FileError, RockrollError, UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.fs.tree import PART_BYTES, Copied, Part, shown
from rockroll.sandbox.http import frames
from rockroll.sandbox.http.answers import BYTES, EVENTS, LINES, Streamed, packed, unless_gone, wanted
from rockroll.sandbox.http.codec import CODECS, Asked, Codec
from rockroll.sandbox.http.failure import failed
from rockroll.sandbox.http.leases import Leases
from rockroll.sandbox.http.node_link import NodeLink
from rockroll.sandbox.http.routes import PREFIX
from rockroll.sandbox.http.tar import TAR, Archive, parts_of
from rockroll.sandbox.linux.steps import steps

PIECE = 4 << 20
"""Bytes of a file in one call of the node."""
ANY_NAME = re.compile(r"{(session|command_id)}")
"""Names in paths that may have slashes in them."""
SIZE, MODE = "Rockroll-File-Size", "Rockroll-File-Mode"
"""Headers of a file that is read: its size in bytes, its mode in octal."""


class Endpoints:
    """`router` has them all."""

    def __init__(self, node: NodeLink) -> None:
        self._node = node
        self._leases = Leases(node)
        self.router = APIRouter(prefix=PREFIX)
        shapes = {
            "call": self._call,
            "stream": self._stream,
            "read": self._read,
            "write": self._write,
            "get": self._get,
            "put": self._put,
            "duplex": self._duplex,
        }
        self.router.add_api_route("/leases", self._hold, methods=["POST"], include_in_schema=False)
        for codec in (codec for codecs in CODECS.values() for codec in codecs):
            route = codec.route
            self.router.add_api_route(
                ANY_NAME.sub(r"{\1:path}", route.path),
                _endpoint(codec, shapes[route.shape]),
                methods=[route.verb],
                include_in_schema=False,
            )

    async def _hold(self, request: Request) -> Response:
        lines = self._leases.hold()
        return Streamed(lines, LINES)

    async def _call(self, codec: Codec, request: Request) -> Response:
        route = codec.route
        content = await _content(request) if codec.json_type is not None else b""
        asked = codec.decode(request.path_params, request.scope["query_string"], content)
        if route.runs:
            return await self._run(asked, request)
        if asked.lease is not None:
            work: Any = self._leases.get(asked.lease).make(route.method, asked.body)
        else:
            work = self._node.call(route.method, asked.body)
        if route.method == "file.stat":
            work = _found(work, asked.body)
        return _json(await unless_gone(request, work), route.status)

    # -- commands

    async def _run(self, asked: Asked, request: Request) -> Response:
        kind = wanted(request, "application/json", LINES, EVENTS)
        if kind == "application/json" and asked.command_id is None:
            method = "session.run" if isinstance(asked.body, wire.Run) else "execute"
            return _json(await unless_gone(request, self._node.call(method, asked.body)))
        start = _start(asked)
        if kind == "application/json":
            return _json(await unless_gone(request, self._once(start)))
        items = self._running(start, kind, keep=asked.command_id is not None)
        await unless_gone(request, _first(items))
        return Streamed(items, kind)

    async def _once(self, start: wire.Start) -> Any:
        await self._node.call("command.start", start)
        return await self._node.call("command.wait", wire.CommandRef(id=start.id, command_id=start.command_id))

    async def _running(self, start: wire.Start, kind: str, *, keep: bool) -> AsyncGenerator[bytes, None]:
        """Nothing, once it has begun; the output as it comes, then the result. Closed early, it kills the command
        unless it is to be kept."""
        over = keep
        ref = wire.CommandRef(id=start.id, command_id=start.command_id, output=False)
        read = wire.ReadOutput(id=start.id, command_id=start.command_id)
        try:
            await self._node.call("command.start", start)
            yield b""
            try:
                async with aclosing(self._node.stream("command.output", read, type=wire.OutputChunk)) as chunks:
                    async for chunk in chunks:
                        yield packed(kind, "output", chunk, chunk.offset)
                result = await self._node.call("command.wait", ref, type=wire.Observation)
                over = True
                yield packed(kind, "result", {"result": result})
            except RockrollError as error:
                yield packed(kind, "error", failed(error))
        finally:
            if not over:
                await asyncio.shield(asyncio.ensure_future(_quietly(self._node.call("command.cancel", ref))))

    # -- streams

    async def _stream(self, codec: Codec, request: Request) -> Response:
        route = codec.route
        asked = codec.decode(request.path_params, request.scope["query_string"])
        offers = (LINES, EVENTS, BYTES) if route.method in ("logs", "command.output") else (LINES, EVENTS)
        kind = wanted(request, *offers)
        items = self._node.stream(route.method, asked.body, type=route.reply)
        first = await unless_gone(request, _first(items))
        several = get_origin(route.reply) is list
        name = {"logs": "log", "command.output": "output", "file.walk": "file", "file.watch": "change"}[route.method]

        def lines(item: Any) -> bytes:
            if kind == BYTES:
                return item.data
            if several:
                return b"".join(packed(kind, name, each) for each in item)
            return packed(kind, name, item, item.offset)

        async def sent() -> AsyncGenerator[bytes, None]:
            async with aclosing(items):
                try:
                    if first is not None:
                        yield lines(first)
                        async for item in items:
                            yield lines(item)
                except RockrollError as error:
                    if kind == BYTES:
                        raise  # the answer is cut off, which the reader sees
                    yield packed(kind, "error", failed(error))

        return Streamed(sent(), kind)

    # -- files

    async def _read(self, codec: Codec, request: Request) -> Response:
        asked = codec.decode(request.path_params, request.scope["query_string"])
        body = asked.body
        assert isinstance(body, wire.ReadFile)
        left = body.limit if "limit" in asked.named else None

        async def read(offset: int, left: int | None) -> wire.FileChunk:
            limit = PIECE if left is None else min(PIECE, left)
            piece = wire.ReadFile(id=body.id, path=body.path, offset=offset, limit=limit)
            return await self._node.call("file.read", piece, type=wire.FileChunk)

        chunk = await unless_gone(request, read(body.offset, left))

        async def sent() -> AsyncGenerator[bytes, None]:
            offset, more, now = body.offset, left, chunk
            while True:
                offset += len(now.data)
                more = None if more is None else more - len(now.data)
                yield now.data
                if not now.data or offset >= now.size or more == 0:
                    return
                now = await read(offset, more)

        return Streamed(sent(), BYTES, {SIZE: str(chunk.size), MODE: f"{chunk.mode:o}"})

    async def _write(self, codec: Codec, request: Request) -> Response:
        body = codec.decode(request.path_params, request.scope["query_string"]).body
        assert isinstance(body, wire.WriteFile)
        append = body.append
        waiting = bytearray()

        async def write() -> None:
            nonlocal append
            piece = msgspec.structs.replace(body, data=bytes(waiting), append=append)
            waiting.clear()
            append = True
            await self._node.call("file.write", piece)

        begun = False
        async for data in request.stream():
            waiting += data
            if len(waiting) >= PIECE:
                begun = True
                await write()
        if waiting or not begun:
            await write()
        return Response(status_code=204)

    async def _get(self, codec: Codec, request: Request) -> Response:
        body = codec.decode(request.path_params, request.scope["query_string"]).body
        assert isinstance(body, wire.PathOf)
        kind = wanted(request, TAR, frames.PARTS)
        parts = self._node.stream("file.get", body, type=Part if kind == TAR else msgspec.Raw)
        first = await unless_gone(request, _first(parts))

        async def tree() -> AsyncGenerator[bytes, None]:
            async with aclosing(parts):
                try:
                    yield frames.framed(first)
                    async for part in parts:
                        yield frames.framed(part)
                except RockrollError as error:
                    yield frames.framed(failed(error))

        async def archive() -> AsyncGenerator[bytes, None]:
            tar = Archive(PurePosixPath(os.fsdecode(body.path)).name.encode("utf-8", "surrogateescape"))
            async with aclosing(parts):
                for data in tar.add(first):
                    yield data
                async for part in parts:  # what is raised cuts the answer off, which the reader sees
                    for data in tar.add(part):
                        yield data
            yield tar.end()

        return Streamed(archive() if kind == TAR else tree(), kind)

    async def _put(self, codec: Codec, request: Request) -> Response:
        body = codec.decode(request.path_params, request.scope["query_string"]).body
        if request.headers.get("content-type") == frames.PARTS:
            parts = frames.unframed(request.stream())
        else:
            parts = steps(parts_of(io.BufferedReader(_Pulled(request.stream()), PART_BYTES)))
        async with aclosing(parts):
            return _json(await self._node.call("file.put", body, type=Copied, parts=parts))

    async def _duplex(self, codec: Codec, request: Request) -> Response:
        body = codec.decode(request.path_params, request.scope["query_string"]).body
        heard = asyncio.Event()

        async def parts() -> AsyncGenerator[msgspec.Raw, None]:
            async with aclosing(frames.unframed(request.stream())) as sent:
                async for part in sent:
                    yield part
            heard.set()

        taken = parts()
        items = self._node.stream(codec.route.method, body, type=msgspec.Raw, parts=taken)
        first = await _first(items)

        async def sent() -> AsyncGenerator[bytes, None]:
            async with aclosing(taken), aclosing(items):
                try:
                    yield frames.framed(first)
                    async for item in items:
                        yield frames.framed(item)
                except RockrollError as error:
                    yield frames.framed(failed(error))
                except ClientDisconnect:
                    pass  # nobody is left to be told

        return Streamed(sent(), frames.PARTS, heard=heard)


class _Pulled(io.RawIOBase):
    """A request's body as a file, for a thread to read."""

    def __init__(self, pieces: AsyncGenerator[bytes, None]) -> None:
        self._pieces, self._loop = pieces, asyncio.get_running_loop()
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._waiting:
            self._waiting = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        taken = min(len(buffer), len(self._waiting))
        buffer[:taken] = self._waiting[:taken]
        self._waiting = self._waiting[taken:]
        return taken

    async def _next(self) -> bytes:
        async for piece in self._pieces:
            if piece:
                return piece
        return b""


def _endpoint(
    codec: Codec, answer: Callable[[Codec, Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await answer(codec, request)

    return endpoint


async def _content(request: Request) -> bytes:
    """A JSON body. UsageError where it is longer than the node takes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > rpc.MAX_MESSAGE:
            raise UsageError(f"a JSON body has at most {rpc.MAX_MESSAGE} bytes; send what is larger as a file")
    return bytes(data)


def _json(reply: Any, status: int = 200) -> Response:
    if reply is None:
        return Response(status_code=204)
    return Response(msgspec.json.encode(reply), status, media_type="application/json")


def _start(asked: Asked) -> wire.Start:
    """A line or a program as a command on its own feet: what streams or is sent again."""
    body, id = asked.body, asked.command_id or secrets.token_hex(8)
    if isinstance(body, wire.Run):
        return wire.Start(
            id=body.id,
            command_id=id,
            command=body.command,
            session=body.session,
            timeout=body.timeout,
            max_output=body.max_output,
        )
    assert isinstance(body, wire.Execute)
    if body.stdin:
        raise UsageError(
            "stdin: a program that streams or has a command_id takes its input by POST …/commands/{command_id}/input"
        )
    return wire.Start(
        id=body.id,
        command_id=id,
        argv=body.argv,
        env=body.env,
        cwd=body.cwd,
        timeout=body.timeout,
        max_output=body.max_output,
    )


async def _found(work: Awaitable[Any], body: wire.Struct) -> Any:
    if (stat := await work) is not None:
        return stat
    assert isinstance(body, wire.StatFile)
    raise FileError(f"{shown(body.path)}: no such file or folder in the sandbox", missing=True)


async def _first(items: AsyncGenerator[Any, None]) -> Any:
    """The first item, so that what fails at once is answered with its status; None where there is none."""
    try:
        return await anext(items)
    except StopAsyncIteration:
        return None
    except BaseException:
        await items.aclose()
        raise


async def _quietly(work: Awaitable[Any]) -> None:
    try:
        await work
    except RockrollError:
        pass
