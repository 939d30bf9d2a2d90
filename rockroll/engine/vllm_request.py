"""One request under way in vLLM: what it has got so far, and the versions of the weights that sampled it.

In: what was asked, and vLLM's outputs for it as they come. Out: pieces, told as they come, and the whole. Leaves asking
vLLM, and when the weights change, to vllm_engine.py.
"""

from __future__ import annotations

from typing import Any

from rockroll.engine.api import GenerateRequest, Generation, OnTokens, Piece


class Request:
    """One request under way: what it has, and the versions that sampled it."""

    def __init__(self, wanted: GenerateRequest, tell: OnTokens | None, version: int) -> None:
        self.wanted = wanted
        self.collector: Any = None
        self.finish_reason: str | None = None
        self._tell = tell
        self._version = version
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []

    @property
    def sampled(self) -> int:
        return len(self._ids)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.wanted.prompt_ids) + len(self._ids)

    def weights_changed(self, version: int) -> None:
        """Tokens that come from now on are this version's. To be called behind a fence, after `take_waiting`."""
        self._version = version

    def take_waiting(self) -> None:
        """What has been sent and not taken yet."""
        if self.collector is not None and (output := self.collector.get_nowait()) is not None:
            self.take(output)
            if output.finished:
                self.collector.put(output)  # its owner waits for something to come

    def take(self, output: Any) -> None:
        completion = output.outputs[0]
        ids = list(completion.token_ids)
        start = len(self._ids)
        logprobs = [row[token].logprob for token, row in zip(ids, completion.logprobs or [], strict=True)]
        self._ids += ids
        self._logprobs += logprobs
        self._versions += [self._version] * len(ids)
        if output.finished:
            self.finish_reason = completion.finish_reason or "abort"
        if ids and self._tell is not None:
            self._tell(Piece(start=start, token_ids=ids, logprobs=logprobs, versions=[self._version] * len(ids)))

    def generation(self) -> Generation:
        reason: Any = self.finish_reason if self.finish_reason in ("stop", "length") else "abort"
        return Generation(token_ids=self._ids, logprobs=self._logprobs, versions=self._versions, finish_reason=reason)


class Scored(Request):
    """A prompt whose own log-probs are wanted."""

    def __init__(self, wanted: GenerateRequest, scored: list[Any]) -> None:
        super().__init__(wanted, None, 0)
        self._scored = scored

    def take(self, output: Any) -> None:
        if output.prompt_logprobs:
            self._scored.append(output.prompt_logprobs)
        if output.finished:
            self.finish_reason = output.outputs[0].finish_reason or "abort"
