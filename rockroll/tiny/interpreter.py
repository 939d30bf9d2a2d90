"""The few commands the tiny model is taught, carried out on a dict of files instead of in a sandbox.

In: files by name and one command. Out: the files afterwards and what the command said, or None for any command that
is not one of the forms below. Used at set-up only, to measure a new model before a sandbox exists: a command that a
model wrote never runs on the host. Leaves real work to Bash; `tests/tiny/test_interpreter.py` holds that both agree.

    echo [WORD]… [> NAME | >> NAME]      cat NAME…      cp NAME NAME      mv NAME NAME      rm NAME…      ls

WORD and NAME are letters a to z, so that nothing has a second meaning for Bash. What is not understood counts as
failed, hence a pass rate measured here is never above the one that Bash would give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FORM = re.compile(r"[a-z]+(?: [a-z]+)*(?: >>? [a-z]+)?")


def run(files: Mapping[str, bytes], command: str) -> tuple[dict[str, bytes], bytes, int] | None:
    """(files, output, exit code) after `command`, as Bash and GNU coreutils would leave them; None: not understood."""
    if not _FORM.fullmatch(command):
        return None
    name, *rest = command.split(" ")
    after = dict(files)
    if name == "echo":
        return _echo(after, rest)
    if ">" in rest or ">>" in rest:
        return None
    if name == "ls" and not rest:
        return after, "".join(f"{file}\n" for file in sorted(after)).encode(), 0
    if name in ("cat", "rm") and rest:
        return _each(after, name, rest)
    if name in ("cp", "mv") and len(rest) == 2:
        return _transfer(after, name, *rest)
    return None


def _echo(files: dict[str, bytes], rest: list[str]) -> tuple[dict[str, bytes], bytes, int]:
    if len(rest) >= 2 and rest[-2] in (">", ">>"):
        *words, how, name = rest
        kept = files.get(name, b"") if how == ">>" else b""
        files[name] = kept + f"{' '.join(words)}\n".encode()
        return files, b"", 0
    return files, f"{' '.join(rest)}\n".encode(), 0


def _each(files: dict[str, bytes], command: str, names: list[str]) -> tuple[dict[str, bytes], bytes, int]:
    output, code = b"", 0
    for name in names:
        if name not in files:
            doing = "cat: " if command == "cat" else "rm: cannot remove "
            shown = name if command == "cat" else f"'{name}'"
            output += f"{doing}{shown}: No such file or directory\n".encode()
            code = 1
        elif command == "cat":
            output += files[name]
        else:
            del files[name]
    return files, output, code


def _transfer(files: dict[str, bytes], command: str, source: str, target: str) -> tuple[dict[str, bytes], bytes, int]:
    if source not in files:
        return files, f"{command}: cannot stat '{source}': No such file or directory\n".encode(), 1
    if source == target:
        return files, f"{command}: '{source}' and '{target}' are the same file\n".encode(), 1
    files[target] = files[source]
    if command == "mv":
        del files[source]
    return files, b"", 0
