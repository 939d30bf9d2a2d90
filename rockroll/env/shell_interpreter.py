"""The few commands that `rockroll:shell` needs, carried out on a dict of files instead of in a sandbox.

In: files by name and one command. Out: the files afterwards and what the command said, or None for any command that
is not one of the forms below. For demonstrations, `rockroll:shell_quiz` and the measure of a new model before a
sandbox exists: a command that a model wrote never runs on the host. Leaves real work to Bash;
`tests/tiny/test_interpreter.py` holds that both agree.

    echo [WORD]… [> NAME | >> NAME]   cat NAME… [> NAME | >> NAME]   cp NAME NAME   mv NAME NAME   rm NAME…   ls

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
    how, target = (rest[-2], rest[-1]) if len(rest) > 1 and rest[-2] in (">", ">>") else ("", "")
    words = rest[:-2] if how else rest
    after = dict(files)
    if name == "echo":
        parts, code = [(True, f"{' '.join(words)}\n".encode())], 0
    elif name == "cat" and words and target not in words:
        parts, code = _cat(files, words)
    elif how:
        return None
    elif name == "rm" and words:
        return after, *_rm(after, words)
    elif name in ("cp", "mv") and len(words) == 2:
        return after, *_transfer(after, name, *words)
    elif name == "ls" and not words:
        return after, "".join(f"{file}\n" for file in sorted(after)).encode(), 0
    else:
        return None
    if not how:
        return after, b"".join(data for _, data in parts), code
    kept = files.get(target, b"") if how == ">>" else b""
    after[target] = kept + b"".join(data for printed, data in parts if printed)
    return after, b"".join(data for printed, data in parts if not printed), code


def _cat(files: Mapping[str, bytes], names: list[str]) -> tuple[list[tuple[bool, bytes]], int]:
    """What goes to standard output (True) and to standard error, in order; and the exit code."""
    parts = [
        (True, files[name]) if name in files else (False, f"cat: {name}: No such file or directory\n".encode())
        for name in names
    ]
    return parts, int(any(not printed for printed, _ in parts))


def _rm(files: dict[str, bytes], names: list[str]) -> tuple[bytes, int]:
    said = ""
    for name in names:
        if files.pop(name, None) is None:
            said += f"rm: cannot remove '{name}': No such file or directory\n"
    return said.encode(), int(bool(said))


def _transfer(files: dict[str, bytes], command: str, source: str, target: str) -> tuple[bytes, int]:
    if source not in files:
        return f"{command}: cannot stat '{source}': No such file or directory\n".encode(), 1
    if source == target:
        return f"{command}: '{source}' and '{target}' are the same file\n".encode(), 1
    files[target] = files[source]
    if command == "mv":
        del files[source]
    return b"", 0
