"""A server's answers kept in a file, and given again from it.

In: a server and a path; or such a file. Out: JSON lines, one for each answer that came whole; a server that gives the
n-th answer to a request to the n-th request that equals it. Leaves forwarding to service.py.

No header of a request is written, so no key is; an answer keeps its type and nothing else of its headers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO

import msgspec

from rockroll.errors import ModelServiceError, UsageError
from rockroll.model_service.source import Exchange, Server


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. Bytes that are no UTF-8 are in base64, under the other name."""

    key: str
    """SHA-256 of method, path and body: what makes two requests equal."""
    method: str
    path: str
    status: int
    type: str
    asked: str = ""
    asked_base64: str = ""
    answer: str = ""
    answer_base64: str = ""


def digest(method: str, path: str, body: bytes) -> str:
    return hashlib.sha256(f"{method} {path}\n".encode() + body).hexdigest()


_ENDS = (b"[DONE]", b'"message_stop"', b'"response.completed"', b'"response.incomplete"', b'"response.failed"')
_LONGEST_END = max(map(len, _ENDS))


class Recorder:
    """`server`, whose answers go into the file at `path`, a stream before its last event is passed on.

    UsageError where the file is there already, or cannot be made. It is readable for its owner alone: what models are
    asked is nobody else's business.
    """

    def __init__(self, server: Server, path: Path) -> None:
        self._server = server
        try:
            path.touch(mode=0o600, exist_ok=False)
            self._file: IO[bytes] = path.open("ab", buffering=0)
        except FileExistsError:
            raise UsageError(f"{path} is there already, and a recording is never overwritten; name another") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None

    @property
    def address(self) -> str:
        return self._server.address

    @contextlib.asynccontextmanager
    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Exchange]:
        async with self._server.ask(method, path, headers, body) as answer:
            yield Exchange(answer.status, answer.headers, self._kept(method, path, body, answer))

    async def _kept(self, method: str, path: str, body: bytes, answer: Exchange) -> AsyncIterator[bytes]:
        said, held = bytearray(), b""
        async for piece in answer.pieces:
            said += piece
            # clients hang up at the word that ends a stream, and with that this would end unwritten
            if held or any(end in said[-len(piece) - _LONGEST_END :] for end in _ENDS):
                held += piece
            else:
                yield piece
        self._write(method, path, body, answer, bytes(said))
        if held:
            yield held

    def _write(self, method: str, path: str, body: bytes, answer: Exchange, said: bytes) -> None:
        kind = next((value for name, value in answer.headers.items() if name.lower() == "content-type"), "")
        record = Record(
            key=digest(method, path, body),
            method=method,
            path=path,
            status=answer.status,
            type=kind,
            **_text("asked", body),
            **_text("answer", said),
        )
        self._file.write(msgspec.json.encode(record) + b"\n")

    async def close(self) -> None:
        await self._server.close()
        self._file.close()


class Replay:
    """Answers from the recording at `path`, and asks nobody: the same questions in the same order get the same bytes.

    A stream is given event by event, as fast as it is taken. A request that was not recorded, or was made more often
    than it was recorded, gets 404. UsageError where the file is no recording.
    """

    def __init__(self, path: Path) -> None:
        self.address = f"replay:{path}"
        self._records: dict[str, list[Record]] = defaultdict(list)
        self._given: dict[str, int] = defaultdict(int)
        decode = msgspec.json.Decoder(Record).decode
        number = 0
        try:
            for line in path.read_bytes().splitlines():
                number += 1
                record = decode(line)
                self._records[record.key].append(record)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise UsageError(f"{path}, line {number}: not a line of a recording: {error}") from None

    @contextlib.asynccontextmanager
    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Exchange]:
        key = digest(method, path, body)
        records, at = self._records.get(key, []), self._given[key]
        if at >= len(records):
            often = f"{len(records)} times" if records else "never"
            raise ModelServiceError(
                f"this request was recorded {often}, and this is time {at + 1}: the conversation differs from the"
                " recorded one",
                status=404,
                type="invalid_request_error",
                code="not_recorded",
            )
        self._given[key] += 1
        record = records[at]
        yield Exchange(record.status, {"Content-Type": record.type} if record.type else {}, _pieces(record))

    async def close(self) -> None:
        """Nothing is open."""


def _text(name: str, data: bytes) -> dict[str, str]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


async def _pieces(record: Record) -> AsyncIterator[bytes]:
    data = base64.b64decode(record.answer_base64) if record.answer_base64 else record.answer.encode()
    if not record.type.startswith("text/event-stream"):
        yield data
        return
    *events, rest = data.split(b"\n\n")
    for event in events:
        yield event + b"\n\n"
        await asyncio.sleep(0)  # others have their turn between two events of a long stream
    if rest:
        yield rest
