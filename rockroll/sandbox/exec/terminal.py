"""A shell on a terminal in a box: what `rockroll debug` shows.

In: a box's execer, the caller's socket, perhaps a session's saved state. Out: the shell's exit code. Leaves the bytes
to the caller: the runtime sends the terminal's master straight to it, so nothing passes through here, and when the
caller dies however it may, the kernel hangs the shell up.

The shell is in the box's own cgroup and in no session's: no command's end kills it, and it lives on until it exits, is
hung up, or everything in the box is killed. It leaves no history file behind, for that would be a change to the box.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal

from rockroll.errors import SandboxLost, SessionError
from rockroll.sandbox.container.oci_exec import NotStarted, OciExec
from rockroll.sandbox.exec.place import Place
from rockroll.sandbox.exec.state import replay
from rockroll.sandbox.wire import Terminal

ANY_SHELL = "if command -v bash >/dev/null 2>&1; then exec bash -i; else exec sh -i; fi"
HANGUP_S = 1.0
"""A shell whose caller is gone and which has not ended this long after its hang-up is killed."""
Saved = tuple[bytes, dict[str, str], str | None, bool]

# The state is that of a shell without a terminal: what that one put away is taken out again. Its traps are the
# session's business (an EXIT trap that removes a folder must not run because somebody looked), hence `trap` is deaf.
_RC = """\
trap() {{ :; }}
source {place}/state 2>/dev/null
unset -f trap
{{
    case $- in *e*) set +e; printf '%s\\n' {errexit};; esac
    set -m -o history
    [[ -o vi ]] || set -o emacs
    shopt -s checkwinsize
    export TERM={term}
    [[ -n $PS1 ]] || PS1={prompt}
    [[ -n $PS2 ]] || PS2='> '
    HISTFILE=
}} 2>/dev/null
printf '%s\\n' {greeting}
"""


async def run(execer: OciExec, place: Place, owner: tuple[int, int], body: Terminal, saved: Saved | None) -> int:
    """Until the shell ends; 128 + signal where one ended it. Cancelled: it is hung up. SessionError, SandboxLost.

    place: a folder name of its own. owner: (uid, gid) of the box's user on this host. saved: of Session.saved.
    """
    env, cwd, argv = {"TERM": body.term, "HISTFILE": ""}, None, ["sh", "-c", ANY_SHELL]
    if saved is not None and body.session is not None:
        state, variables, cwd, busy = saved
        env = {**variables, **env}
        argv = ["bash", "--rcfile", f"{place.inside}/rc", "-i"]
        _write(place, owner, replay(state), _rc(place.inside, body, busy))
    try:
        try:
            shell = await execer.spawn_on_terminal(argv, body.console, (body.rows, body.columns), env=env, cwd=cwd)
        except NotStarted as error:
            raise SessionError(f"no shell can be opened: {error.message}") from None
        try:
            status = await asyncio.shield(shell.ended)
        except asyncio.CancelledError:
            shell.send(signal.SIGHUP)
            shell.send(signal.SIGCONT)
            asyncio.get_running_loop().call_later(HANGUP_S, shell.send, signal.SIGKILL)
            raise
    finally:
        shutil.rmtree(place.host, ignore_errors=True)
    if status is None:
        raise SandboxLost("the shell is gone, and how it ended is not known")
    return status if status >= 0 else 128 - status


def _rc(inside: str, body: Terminal, busy: bool) -> bytes:
    greeting = f"rockroll: a copy of session {body.session} as it was after its last command"
    greeting += " (one is running now)" if busy else ""
    text = _RC.format(
        place=inside,
        term=shlex.quote(body.term),
        prompt=shlex.quote(f"[{re.sub(r'[^a-zA-Z0-9_.-]', '_', body.session or '')}] " + r"\w\$ "),  # bash expands it
        greeting=shlex.quote(greeting),
        errexit=shlex.quote(
            "rockroll: set -e of the session is off here, else the first failure would close this shell"
        ),
    )
    return text.encode()


def _write(place: Place, owner: tuple[int, int], state: bytes, rc: bytes) -> None:
    place.host.mkdir(mode=0o700)
    for name, data in (("state", state), ("rc", rc)):
        path = place.host / name
        path.write_bytes(data)
        path.chmod(0o400)
        os.chown(path, *owner)
    os.chown(place.host, *owner)
