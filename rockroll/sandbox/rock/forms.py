"""What ROCK's SDK sends, and the one shape of every answer it reads.

In: JSON bodies and headers of `/apis/envs/sandbox/v1`. Out: checked values; answers, errors among them, in ROCK's
envelope: `{"status": "Success"|"Failed", "message", "error", "result"}`, with HTTP status 200 but where the SDK would
take a failure for a result. Leaves the doing to compat.py.

Unknown fields are let through: newer SDKs send more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from rockroll.errors import (
    FileError,
    HostError,
    ImageMissing,
    LimitNotEnforced,
    PeerLost,
    RockrollError,
    SandboxLost,
    SandboxNotFound,
    SessionError,
    UsageError,
)
from rockroll.sandbox.http.failure import status_of

OK, BAD_REQUEST, SERVER_ERROR, COMMAND_ERROR = 2000, 4000, 5000, 6000
"""ROCK's codes: its SDK raises BadRequestRockError, InternalServerRockError or CommandRockError by them."""
CALLERS_FAULT = (FileError, ImageMissing, LimitNotEnforced, SandboxNotFound, SessionError, UsageError)


class Start(BaseModel):
    """`/start` and `/start_async`."""

    image: str = Field(min_length=1)
    image_os: str = "linux"
    auto_clear_time_minutes: int = Field(default=360, ge=0)
    memory: str = "8g"
    cpus: float = 2
    limit_cpus: float | None = None
    disk: str | None = "50G"
    sandbox_id: str | None = None
    startup_timeout: float | None = Field(default=None, gt=0)
    pull: Literal["never", "always", "missing"] = "missing"
    registry_username: str | None = None
    registry_password: str | None = None
    num_gpus: float | None = None
    accelerator_type: str | None = None
    use_kata_runtime: bool = False
    auto_archive_seconds: int | None = None
    auto_delete_seconds: int | None = Field(default=None, ge=0)


class Named(BaseModel):
    """Which sandbox a call is about."""

    sandbox_id: str = Field(min_length=1)


class NewSession(Named):
    session: str = "default"
    startup_source: list[str] = []
    startup_timeout: float = Field(default=60.0, gt=0)
    env_enable: bool = False
    env: dict[str, str] | None = None
    remote_user: str | None = None


class Action(Named):
    command: str
    session: str = "default"
    timeout: float | None = Field(default=None, gt=0)
    check: Literal["silent", "raise", "ignore"] = "raise"
    error_msg: str = ""
    is_interactive_command: bool = False
    is_interactive_quit: bool = False


class OldSession(Named):
    session: str = "default"


class Program(Named):
    command: str | list[str]
    shell: bool = False
    timeout: float | None = Field(default=1200, gt=0)
    env: dict[str, str] | None = None
    cwd: str | None = None
    check: bool = False
    error_msg: str = ""


class Read(Named):
    path: str
    encoding: str | None = None
    errors: str | None = None


class Write(Named):
    path: str
    content: str


class CommandFailed(RockrollError):
    """A command that the caller wanted checked did not do well. fields: what ROCK calls the observation."""


class Answer(Response):
    """JSON, in ASCII where it holds lone surrogates (a file read with errors="surrogateescape"), which UTF-8 cannot
    carry."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        try:
            return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            return json.dumps(content, separators=(",", ":")).encode()


def success(result: Any = None) -> Answer:
    return Answer({"status": "Success", "message": None, "error": None, "result": result})


def failure(what: str, error: RockrollError) -> Answer:
    """what: the endpoint, in words."""
    code = COMMAND_ERROR if isinstance(error, CommandFailed) else SERVER_ERROR
    if isinstance(error, CALLERS_FAULT) and not isinstance(error, HostError | PeerLost | SandboxLost):
        code = BAD_REQUEST
    result = {"code": code, "exit_code": None, "failure_reason": error.message}
    if isinstance(error, CommandFailed):
        result |= error.fields
    return Answer({"status": "Failed", "message": f"{what} failed", "error": error.message, "result": result})


class Envelope(APIRoute):
    """A route whose errors, those of the body's form too, are answers in ROCK's envelope."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler, what = super().get_route_handler(), self.name.replace("_", " ")

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as failed:
                told = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in failed.errors())
                error = UsageError(told)
            except RockrollError as failed:
                error = failed
            answer = failure(what, error)
            if what == "read file":
                # The SDK reads result["content"] without a look at the status: only an HTTP error is one to it.
                answer.status_code = status_of(error)
            return answer

        return answered
