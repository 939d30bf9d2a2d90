"""Arguments that several commands have, and what people write in them.

In: the text of an argument. Out: the value, or UsageError that names the argument. Leaves what is done with it to the
commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rockroll.errors import UsageError

Id = Annotated[str, typer.Argument(metavar="ID", help="An id, the beginning of one, or a name.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids, beginnings of ids, or names.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Raw = Annotated[bool, typer.Option("--raw", help="Every byte as it is, to a terminal too: see docs/security.md.")]
Upstream = Annotated[str | None, typer.Option(metavar="URL", help="The server to ask, as OPENAI_BASE_URL would say.")]
KeyEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="The environment variable with the server's key; OPENAI_API_KEY.")
]
Speaks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIALECT",
        help="What the server speaks beside chat and completions: responses, messages. Again for each.",
    ),
]


def pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"{option}: K=V, as in {option} LANG=C; got {text!r}")
        found[key] = value
    return found


def seconds_of(option: str, text: str | None) -> float | None:
    from rockroll.units import seconds

    try:
        return None if text is None else seconds(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
