"""What Anthropic's dialects share: the error shape and the models.

In: what went wrong, or what is served. Out: JSON in Anthropic's shapes. Leaves messages to their own files.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rockroll.errors import ModelServiceError
from rockroll.model_service.dialects.call import Vendor, encode
from rockroll.model_service.dialects.openai import error_status

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_object(error: ModelServiceError) -> dict[str, Any]:
    """What is under `error`: Anthropic has a type for each status, and no param or code."""
    status = error_status(error)
    message = error.message
    if error.fields.get("code") == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # these words are how its clients know that they must compact
    fallback = "api_error" if status >= 500 else "invalid_request_error"
    return {"type": _TYPES.get(status, fallback), "message": message}


def error_body(error: ModelServiceError) -> bytes:
    return encode({"type": "error", "error": error_object(error), "request_id": None})


def model_list(names: list[str], created: int) -> bytes:
    first, last = (names[0], names[-1]) if names else (None, None)
    models = [_model(name, created) for name in names]
    return encode({"data": models, "has_more": False, "first_id": first, "last_id": last})


def model_card(name: str, created: int) -> bytes:
    return encode(_model(name, created))


def _model(name: str, created: int) -> dict[str, Any]:
    since = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": name, "display_name": name, "created_at": since}


ANTHROPIC = Vendor(request_id="request-id", error=error_body, status=error_status, models=model_list, model=model_card)
