"""What a call of Ray that failed has to say, in one line.

In: an error of Ray's. Out: the sentence of ours that was raised on the other node, where there was one; else Ray's last
line, which is where it says what happened. Leaves what is to be done about it to who called.
"""

from __future__ import annotations

from rockroll.errors import RockrollError


def why(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # of a RayTaskError: what the task raised
    if isinstance(cause, RockrollError):
        return cause.message
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
