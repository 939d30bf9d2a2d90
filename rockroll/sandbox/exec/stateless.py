"""Whether a command leaves its shell as it was, so that the shell's state need not be saved again.

In: a command's text, and the state saved last. Out: True only where that is certain: one simple command of plain words
that bash hands to a program, or does itself without keeping anything. Leaves running it to shell.py.

Saving the state takes bash as long as all else that a short command costs; most commands of an agent are of this kind.
"""

from __future__ import annotations

import re

_SIMPLE = re.compile(rb"[ \t]*([\w./+][\w./+:@%,-]*)(?:[ \t]+[\w./+:@%,=*-]+)*[ \t]*\n?")
"""No quotes, expansions, redirections, assignments or separators."""

_BASH = frozenset(
    b". : [ alias bg bind break builtin caller cd command compgen complete compopt continue declare dirs disown echo"
    b" enable eval exec exit export false fc fg getopts hash help history jobs kill let local logout mapfile popd"
    b" printf pushd pwd read readarray readonly return set shift shopt source suspend test times trap true type typeset"
    b" ulimit umask unalias unset wait"
    b" if then else elif fi case esac for select while until do done in function time coproc".split()
)
_KEEPS_NOTHING = frozenset([b"true", b"false", b"echo", b"test"])
_FUNCTION = re.compile(rb"^(?:declare -f\w* )?(\S+)(?: \(\))? *$", re.MULTILINE)
"""As `declare -F` and `declare -f` begin a function; what else it may match only adds names."""


class Surroundings:
    """What in a shell's state could make a plain word more than it looks."""

    def __init__(self, state: bytes) -> None:
        """state: as shell.py saves it."""
        options = state.partition(b"\n")[0]
        # A trap runs at any command, an alias may stand for anything, autocd makes of a folder's name a cd.
        self._any = not state or b"\nalias " in state or b"\ntrap -- " in state or b"autocd" in options
        self._functions = frozenset(_FUNCTION.findall(state))

    def unchanged_by(self, command: bytes) -> bool:
        """Whether the command certainly leaves variables, functions, options, traps and the folder alone."""
        if self._any or not (match := _SIMPLE.fullmatch(command)):
            return False
        name = match[1]
        return name not in self._functions and (name not in _BASH or name in _KEEPS_NOTHING)
