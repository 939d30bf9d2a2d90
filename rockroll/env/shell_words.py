"""The words of `rockroll:shell`: what its files hold and how its goals are phrased.

In: nothing. Out: tuples of words and phrases that a tokenizer may know whole. Leaves composing situations to shell.py
and file names to it as well: those are letters drawn at random, so that they must be copied and cannot be known.
"""

from __future__ import annotations

import re

_WORDS = """
amber apple arrow autumn badge basket beacon berry birch boat bottle branch breeze bridge bronze brook button cabin
cactus camel candle canyon carpet castle cedar cherry circle cloud clover cobalt comet copper coral cotton crane daisy
desert dragon eagle ember engine falcon fern field flint flower forest fossil garden ginger guitar hammer harbor hazel
helmet hollow honey island ivory jacket
"""
WORDS: tuple[str, ...] = tuple(_WORDS.split())
"""What files hold. None is a shell word or a word of a phrase; each is letters a-z only. Sixty, since a model
learns to copy what it meets often: after 125 steps of the tiny model's warm-up the loss was 0.14 with 60 and 0.21 with
140."""

PHRASES: dict[str, tuple[str, ...]] = {
    "create": (
        "Create the file {file} with the words {first} {last}.",
        "Make a new file {file} that says {first} {last}.",
        "Write {first} {last} to the new file {file}.",
    ),
    "append": (
        "Add the word {last} to the end of {file}.",
        "Append the word {last} to the file {file}.",
        "Put the word {last} at the end of {file}.",
    ),
    "copy": (
        "Copy the file {file} to {other}.",
        "Make a copy of {file} called {other}.",
        "Copy {file} and call the copy {other}.",
    ),
    "follow": (
        "Delete the file that {file} names.",
        "Look in {file} and delete the file named there.",
        "Remove the file whose name is in {file}.",
    ),
    "extract": (
        "Write the last word of {file} to {other}.",
        "Find the last word of {file} and put it in {other}.",
        "Take the last word in {file} and save it as {other}.",
    ),
}
"""How each kind of goal is said. `file` and `other` are names, `first` and `last` are words."""

PHRASE_WORDS: tuple[str, ...] = tuple(
    sorted({word for ways in PHRASES.values() for way in ways for word in re.findall(r"(?<!\{)\b[A-Za-z]+\b", way)})
)
"""Every word that stands in a phrase."""
