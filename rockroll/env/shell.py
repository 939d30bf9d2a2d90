"""`rockroll:shell`: small jobs with files, for a model that works in Bash.

In: a seed and a split. Out: a situation (a few files and a goal in words), and the reward 1 or 0 for the state in
which an agent left the folder. Leaves running the agent to `rockroll/agent`, the sandbox to its room and tokens to all.

Five kinds of goal, each a fifth of the draw:

| kind | goal | what solves it |
|---|---|---|
| create | a new file with two given words | `echo amber fern > abc` |
| append | one more word at the end of a file | `echo amber >> abc` |
| copy | the same contents under a second name | `cp abc xyz` |
| follow | delete the file that another file names | `cat abc`, read `xyz`, `rm xyz` |
| extract | the last word of a file into a new file | `cat abc`, read it, `echo fern > xyz` |

Every situation also has a file that must stay as it is.
"""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rockroll.env.api import Situation, Split
from rockroll.env.shell_words import PHRASE_WORDS, PHRASES, WORDS
from rockroll.errors import FileError

if TYPE_CHECKING:
    from rockroll.sandbox.client import Sandbox

KINDS: tuple[str, ...] = tuple(PHRASES)
SHELL_WORDS: tuple[str, ...] = ("cat", "cp", "echo", "ls", "mv", "rm", "touch", "grep", "head", "tail", "done")
"""What a command or the agent's last word may begin with: no file is ever named so."""

NAME_LETTERS = 3
EVAL_SHARE = 8
"""One situation in so many belongs to the eval split."""

_TAKEN = frozenset(WORDS) | frozenset(word.lower() for word in PHRASE_WORDS) | frozenset(SHELL_WORDS)


def may_be_name(word: str) -> bool:
    """A file of some situation may be called so."""
    return (
        len(word) == len(set(word)) == NAME_LETTERS
        and all(letter in string.ascii_lowercase for letter in word)
        and word not in _TAKEN
    )


@dataclass(frozen=True)
class Goal:
    """What `grade` looks for, and what the goal was made of. Never enters the sandbox."""

    kind: str
    phrase: int
    """Which of PHRASES[kind] says it."""
    file: str
    """The file the goal speaks of first."""
    other: str
    """The second name: where a copy or a word goes, or the file that `file` names."""
    words: tuple[str, str]
    """(first, last): the words to write, or those that `file` holds."""
    expected: Mapping[str, bytes]
    """The whole folder afterwards: contents by name."""


class ShellTask:
    """A `SandboxTask` of more than 10^12 situations."""

    def situation(self, seed: int, split: Split) -> Situation:
        """The situation of that seed; the split it belongs to is decided by a hash of the whole situation.

        Raises ValueError for a split other than train and eval.
        """
        if split not in ("train", "eval"):
            raise ValueError(f"split is train or eval; got {split!r}")
        rng = random.Random(f"rockroll:shell {split} {seed}")
        while True:
            situation = _draw(rng)
            if split_of(situation) == split:
                return situation

    async def grade(self, sandbox: Sandbox, situation: Situation) -> float:
        """1.0 where the folder holds exactly what it should, names and bytes; else 0.0."""
        expected: Mapping[str, bytes] = situation.secret.expected
        try:
            listed = await sandbox.list_files(situation.cwd)
        except FileError:
            return 0.0  # the agent removed the folder itself
        if {entry.name: (entry.kind, entry.size) for entry in listed} != {
            name: ("file", len(data)) for name, data in expected.items()
        }:
            return 0.0
        for name, data in expected.items():
            if await sandbox.read_file(situation.path(name)) != data:
                return 0.0
        return 1.0


def split_of(situation: Situation) -> Split:
    """The split a situation belongs to: a hash of the instruction, the names and the contents."""
    parts = [situation.instruction.encode()]
    for name in sorted(situation.files):
        parts += [name.encode(), situation.files[name]]
    digest = hashlib.sha256(b"\0".join(parts)).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % EVAL_SHARE == 0 else "train"


def _draw(rng: random.Random) -> Situation:
    """One situation of either split."""
    kind = rng.choice(KINDS)
    file, other, bystander = draw_names(rng, 3)
    first, last, third = rng.sample(WORDS, 3)
    files: dict[str, bytes] = {bystander: f"{third}\n".encode()}
    if kind in ("copy", "extract"):
        files[file] = f"{first} {last}\n".encode()
    elif kind == "append":
        files[file] = f"{first}\n".encode()
    elif kind == "follow":
        files[file] = f"{other}\n".encode()
        files[other] = f"{first} {last}\n".encode()

    expected = dict(files)
    if kind == "create":
        expected[file] = f"{first} {last}\n".encode()
    elif kind == "append":
        expected[file] += f"{last}\n".encode()
    elif kind == "copy":
        expected[other] = files[file]
    elif kind == "follow":
        del expected[other]
    else:
        expected[other] = f"{last}\n".encode()

    phrase = rng.randrange(len(PHRASES[kind]))
    return Situation(
        instruction=PHRASES[kind][phrase].format(file=file, other=other, first=first, last=last),
        files=files,
        secret=Goal(kind=kind, phrase=phrase, file=file, other=other, words=(first, last), expected=expected),
    )


def draw_names(rng: random.Random, count: int) -> list[str]:
    """Names of letters, none of which occurs twice: each letter then says which one follows when a name is copied."""
    while True:
        letters = rng.sample(string.ascii_lowercase, count * NAME_LETTERS)
        names = ["".join(letters[i : i + NAME_LETTERS]) for i in range(0, len(letters), NAME_LETTERS)]
        if _TAKEN.isdisjoint(names):  # the rest of may_be_name a sample of letters keeps by itself
            return names
