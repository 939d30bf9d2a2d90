"""Whether a teacher reads the student's tokens as the student does.

In: two model folders. Out: nothing, or TrainError that says where their tokenizers differ. Loads no model and no torch.
"""

from __future__ import annotations

import json
from pathlib import Path

from rockroll.errors import TrainError


def check_tokenizer(student: str | Path, teacher: str | Path) -> None:
    """Raises TrainError unless every token has the same id in both folders' tokenizer.json."""
    ours, theirs = _ids(Path(student)), _ids(Path(teacher))
    if ours == theirs:
        return
    token = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise TrainError(
        f"train teacher needs the student's tokenizer, since log-probs are compared token by token: {token!r} is id "
        f"{ours.get(token)} in {student} and {theirs.get(token)} in {teacher}; take a teacher of the same family"
    )


def _ids(folder: Path) -> dict[str, int]:
    """Every token's id, the added ones included."""
    file = folder / "tokenizer.json"
    try:
        tree = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise TrainError(f"train teacher: {file} must be a readable tokenizer.json: {error}") from None
    vocabulary = tree.get("model", {}).get("vocab", {})
    if not isinstance(vocabulary, dict):  # unigram models list [token, score] by id
        vocabulary = {entry[0]: id for id, entry in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in tree.get("added_tokens", [])}
