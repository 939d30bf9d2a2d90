"""What the calls of one sandbox may use up while one route lasts: one episode's share.

In: a Budget, and what each call asked for and took. Out: the refusal of a call that would be over it. Pure: the caller
brings the time. Leaves telling the rollout side to box.py, and one answer's length and the turns to the rollout side.
"""

from __future__ import annotations

import msgspec

from rockroll.errors import ModelServiceError, UsageError


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each is a bound on all calls of the route together. None: none but the gateway's own."""

    calls: int | None = None
    """Completions begun; each of the `n` of a request is one, one that failed is none, a retry is none."""
    concurrent: int | None = None
    """Completions under way at once, where that is less than the gateway's own bound."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """`max_tokens` of a call is cut to what is left when it begins, so calls at the same time may go over it."""
    body_bytes: int | None = None
    seconds: float | None = None
    """From the route on. A call that began in time may end after it."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"budget {name}: at least 0 is needed, got {value}; leave it out for no bound")


class Over(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox was refused a call for want of budget: its episode is to end as truncated."""

    sandbox: str
    token: str
    limit: str
    """The field of Budget."""
    message: str


class Spent:
    """The account of one route; `now` is any clock that goes on by seconds."""

    def __init__(self, budget: Budget, now: float) -> None:
        self.budget = budget
        self.calls = self.prompt_tokens = self.completion_tokens = self.body_bytes = 0
        self._since = now

    def check(self, n: int, body_bytes: int, now: float) -> None:
        """ModelServiceError where a request for `n` completions is over the budget; its field `limit` names the bound.

        What a shorter conversation would have cured is the vendor's context error; the rest is its rate error, and
        clients are told not to try again.
        """
        may, seconds = self.budget, now - self._since
        for limit, spent, wanted, unit in (
            ("calls", self.calls, n, "calls of the model"),
            ("seconds", seconds, 0, "seconds with the model"),
            ("completion_tokens", self.completion_tokens, 1, "tokens from the model"),
            ("body_bytes", self.body_bytes, body_bytes, "bytes of requests"),
            ("prompt_tokens", self.prompt_tokens, 1, "tokens of prompts"),
        ):
            most = getattr(may, limit)
            if most is None or spent + wanted <= most:
                continue
            context = limit in ("body_bytes", "prompt_tokens")
            raise ModelServiceError(
                f"this episode may use {most:g} {unit} (budget {limit}) and has used {spent:.0f}; it is over",
                status=400 if context else 429,
                type="invalid_request_error" if context else "requests",
                code="context_length_exceeded" if context else "rate_limit_exceeded",
                limit=limit,
                again=False,
            )

    def most_tokens(self, asked: int | None) -> int | None:
        """What a call that asks for so many may have."""
        if (most := self.budget.completion_tokens) is None:
            return asked
        left = max(1, most - self.completion_tokens)
        return left if asked is None else min(asked, left)

    def begin(self, n: int, body_bytes: int) -> None:
        self.calls += n
        self.body_bytes += body_bytes

    def failed(self, n: int) -> None:
        self.calls -= n

    def answered(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
