"""Token ids of a run as text.

In: a run, whose recipe names a model. Out: what each id stands for, and the text of many. Where the model's tokenizer
cannot be had, numbers, and the reason. Leaves what the tokens say to trajectory.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rockroll.controller.model_path import find
from rockroll.errors import RockrollError, UsageError
from rockroll.rollout.answer import AnswerParser, Call
from rockroll.view.runs import Run
from rockroll.view.text import visible


class _Every(frozenset[str]):
    """Which tools there were is not recorded: any name may be one."""

    def __contains__(self, _: Any) -> bool:
        return True


class Vocabulary:
    """The tokenizer of one run's model."""

    def __init__(self, run: Run) -> None:
        self.missing = ""
        """Why ids are shown as numbers; empty where they are not."""
        self.marks: dict[int, str] = {}
        self._pieces: dict[int, str] = {}
        self._tokenizer = None
        reasons = []
        from rockroll.rollout.tokenizer import ChatTokenizer  # loads tokenizers, which a page of curves has no use for

        for folder in _folders(run):
            try:
                self._tokenizer = ChatTokenizer(folder())
                self.marks = self._tokenizer.marks
                return
            except RockrollError as error:
                reasons.append(str(error))
        self.missing = "; ".join(reasons)

    def piece(self, id: int) -> str:
        """What one token stands for; bytes that are no whole character as escapes."""
        if (known := self._pieces.get(id)) is not None:
            return known
        if self._tokenizer is None:
            found = f"{id} "
        else:
            data = self._tokenizer.token_bytes(id)
            try:
                found = visible(data.decode())
            except UnicodeDecodeError:
                found = "".join(f"\\x{byte:02x}" for byte in data)
        return self._pieces.setdefault(id, found)

    def text(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None:
            return " ".join(map(str, ids))
        return self._tokenizer.plain(ids)

    def answer(self, ids: Sequence[int]) -> tuple[str, str, list[Call]]:
        """(reasoning, content, tool calls) of what was sampled, its end of turn left out."""
        if self._tokenizer is None:
            return "", self.text(ids), []
        parser = AnswerParser(self._tokenizer.style, tools=_Every(), thinking=self._tokenizer.thinking)
        parser.feed(self._tokenizer.decode(ids))
        parser.finish()
        return parser.reasoning, parser.content, parser.calls


def _folders(run: Run) -> Iterator[Callable[[], Path]]:
    """Where the tokenizer may be: the recipe's model, then what the run saved."""
    yield lambda: _at_hand(run.model)
    saved = [path for path in (run.path / "checkpoints").glob("step_*/model") if (path / "tokenizer.json").exists()]
    if saved:
        yield lambda: max(saved, key=lambda path: path.stat().st_mtime)
    if (run.path / "weights" / "tokenizer.json").exists():
        yield lambda: run.path / "weights"


def _at_hand(model: str) -> Path:
    """The folder of a recipe's model. UsageError where it would have to be made first: looking starts nothing."""
    found = find(model)
    if found.folder is None or found.todo:
        raise UsageError(f"model {model} is not on this machine yet: {found.todo}")
    return found.folder


class Vocabularies:
    """One of each model, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Vocabulary] = {}
        self._lock = threading.Lock()

    def of(self, run: Run) -> Vocabulary:
        with self._lock:
            known = self._made.get(run.model)
            if known is None or known.missing:  # another run's checkpoints, or a later one, may have it
                known = self._made[run.model] = Vocabulary(run)
            return known
