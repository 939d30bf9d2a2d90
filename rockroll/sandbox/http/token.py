"""The bearer token of this home's server: made on first start, kept in a file that only its owner reads.

In: a path. Out: the token. Leaves comparing to gate.py. The token is never logged and never an argument of a command.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from rockroll import home
from rockroll.errors import UsageError
from rockroll.sandbox.where import TOKEN_FILE

MIN_LENGTH = 16


def default_path() -> Path:
    return home.home() / TOKEN_FILE


def read(path: Path) -> str:
    """UsageError where others may read it, or it is no token."""
    try:
        mode = path.stat().st_mode
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file: {path} cannot be read: {error}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"--token-file: {path} may be read by others (mode {stat.S_IMODE(mode):o}); run chmod 600 on it"
        )
    if len(token) < MIN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"--token-file: {path} holds no token: at least {MIN_LENGTH} letters and digits on one line")
    return token


def ensure(path: Path) -> str:
    """The token in that file; one is made where the file is missing, once, whoever else does so at the same time."""
    if not path.exists():
        # Written whole under another name first: nobody ever reads half a token.
        made = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w") as file:
                file.write(f"{secrets.token_urlsafe(32)}\n")
            try:
                os.link(made, path)
            except FileExistsError:
                pass
        except OSError as error:
            raise UsageError(f"--token-file: {path} cannot be made: {error.strerror}") from None
        finally:
            made.unlink(missing_ok=True)
    return read(path)
