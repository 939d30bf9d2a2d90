"""An answer that is given a second time is told once.

In: the pieces of an answer, from its start as often as it was begun. Out: each token to the listener, once. Leaves
asking again to pool.py.
"""

from __future__ import annotations

from rockroll.engine.api import Generation, OnTokens, Piece
from rockroll.errors import EngineError


class Retold:
    def __init__(self, request: str, tell: OnTokens) -> None:
        self._request, self._tell = request, tell
        self._told: list[int] = []
        self._again = 0

    def begin(self) -> OnTokens:
        """The listener of the next attempt."""
        self._again = 0
        return self._take

    def finish(self, got: Generation) -> None:
        """EngineError where the answer is another one than was told."""
        if got.token_ids[: len(self._told)] != self._told:
            raise self._differs()

    def _take(self, piece: Piece) -> None:
        known = self._told[self._again : self._again + len(piece.token_ids)]
        if piece.token_ids[: len(known)] != known:
            raise self._differs()
        self._again += len(piece.token_ids)
        if len(known) < len(piece.token_ids):
            new = len(known)
            self._told += piece.token_ids[new:]
            self._tell(
                Piece(
                    start=piece.start + new,
                    token_ids=piece.token_ids[new:],
                    logprobs=piece.logprobs[new:],
                    versions=piece.versions[new:],
                )
            )

    def _differs(self) -> EngineError:
        return EngineError(
            f"request {self._request} was told {len(self._told)} tokens before its engine died, and the answer begins "
            "otherwise with the weights of now; ask again",
            code="answer_changed",
        )
