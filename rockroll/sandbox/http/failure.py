"""Errors as HTTP answers: `{"error": {"type", "message", "fields"}}` and a status.

In: a RockrollError. Out: the answer's body and status; on the other side the same class again. Leaves sending to
answers.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rockroll import errors
from rockroll.errors import RockrollError, by_name

STATUS: dict[type[RockrollError], int] = {
    errors.UsageError: 400,
    errors.SandboxNotFound: 404,
    errors.SnapshotNotFound: 404,
    errors.SandboxLost: 410,
    errors.ImageMissing: 422,
    errors.LimitNotEnforced: 422,
    errors.FileError: 422,
    errors.SessionError: 409,
    errors.SandboxError: 409,
    errors.PeerLost: 502,
    errors.HostError: 503,
    RockrollError: 500,
}
"""By class; a class that is not here takes its base's. A FileError with the field `missing` is a 404."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    type: str
    """The class in rockroll.errors."""
    message: str
    """One sentence: the rule, the value got, the cure."""
    fields: dict[str, Any] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is not a success."""

    error: Failure


def failed(error: RockrollError) -> Failed:
    return Failed(error=Failure(type=type(error).__name__, message=error.message, fields=error.fields))


def status_of(error: RockrollError) -> int:
    if error.fields.get("missing"):
        return 404
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_of(failure: Failure) -> RockrollError:
    """The error that the other side raised."""
    return by_name(failure.type)(failure.message, **failure.fields)
