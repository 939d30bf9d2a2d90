"""Which dialect answers at which path.

In: a request's path and headers. Out: the dialect that is spoken there, the vendor whose errors are expected. Leaves
what a dialect is to call.py and each one to its own file.
"""

from __future__ import annotations

from collections.abc import Mapping

from rockroll.model_service.dialects.anthropic import ANTHROPIC
from rockroll.model_service.dialects.anthropic_messages import COUNT_TOKENS, MESSAGES
from rockroll.model_service.dialects.call import Call, Dialect, Events, Vendor
from rockroll.model_service.dialects.openai import OPENAI
from rockroll.model_service.dialects.openai_chat import CHAT_COMPLETIONS
from rockroll.model_service.dialects.openai_completions import COMPLETIONS
from rockroll.model_service.dialects.openai_responses import RESPONSES

__all__ = ["DIALECTS", "Call", "Dialect", "Events", "Vendor", "vendor_at"]

DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": CHAT_COMPLETIONS,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
}
"""Each is asked by POST."""


def vendor_at(path: str, headers: Mapping[str, str]) -> Vendor:
    """Whose shapes a request at `path` expects."""
    if (dialect := DIALECTS.get(path.rstrip("/"))) is not None:
        return dialect.vendor
    return ANTHROPIC if "anthropic-version" in headers else OPENAI
