"""What a program in a box printed cannot drive the terminal that shows it, nor can a name that somebody chose."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rockroll.cli.text import Harmless, safe, safe_lines
from rockroll.logs import FORMAT, Lines

ROCKROLL = [sys.executable, "-m", "rockroll", "sandbox"]
TITLE, CLIPBOARD = b"\x1b]0;owned\x07", b"\x1b]52;c;cm0gLXJmIH4K\x07"
ANSWERS, MOVES, CHARSET, C1 = b"\x1b[6n\x1b[c", b"\x1b[2J\x1b[1A", b"\x0e\x1b(0", b"\xc2\x9b31m\x9b31m"
EVIL = TITLE + CLIPBOARD + ANSWERS + MOVES + CHARSET + C1 + b"\x1bP+q544e\x1b\\"
MARKUP = "[bold red]owned[/bold red][link=http://x]y[/link]"
DRIVES = re.compile(rb"\x1b(?!\[[0-9;:]*[mK])|[\x00-\x06\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]|\xc2[\x80-\x9f]")


def shown(data: bytes, *, pieces: int = 1 << 20) -> bytes:
    harmless = Harmless()
    parts = [harmless.feed(data[at : at + pieces]) for at in range(0, len(data), pieces)]
    return b"".join(parts) + harmless.end()


def test_text_colours_and_lines_pass() -> None:
    plain = "grün\tok\r\n\x1b[1;31mred\x1b[0m progress\r\x1b[K100 %\b\n".encode()
    assert shown(plain) == plain + b"\x1b[0m"
    assert shown(b"no colour\n") == b"no colour\n"


@pytest.mark.parametrize("pieces", [1 << 20, 1, 3])
def test_what_drives_a_terminal_is_shown_instead(pieces: int) -> None:
    told = shown(b"before " + EVIL + b" after", pieces=pieces)
    assert not DRIVES.search(told)
    assert told.startswith(rb"before \x1b]0;owned") and told.endswith(b" after")


def test_it_is_the_same_however_it_is_cut() -> None:
    data = "é\x1b[1m".encode() + EVIL + b"\xff\xc3"
    assert len({shown(data, pieces=pieces) for pieces in range(1, len(data) + 1)}) == 1


def test_a_sequence_without_an_end_holds_nothing_back_for_ever() -> None:
    harmless = Harmless()
    first = harmless.feed(b"\x1b[" + b"1" * 200)
    assert rb"\x1b[111" in first
    assert Harmless().feed(b"\x1b") == b""


def test_names_are_one_line_of_printable_characters() -> None:
    assert safe("a\x1b]0;x\x07\u202e\nb") == r"a\x1b]0;x\x07\x202e\x0ab"
    assert safe_lines("a\nb\x1b") == "a\nb\\x1b"


def test_a_line_of_a_log_is_one_line_and_drives_nothing(tmp_path: Path) -> None:
    record = logging.LogRecord(
        "n", logging.INFO, "f", 1, "/srv/%s was changed", ("a\x1b]0;x\x07\n2026 ERROR faked",), None
    )
    assert Lines(FORMAT).format(record).endswith(r"/srv/a\x1b]0;x\x07\x0a2026 ERROR faked was changed")
    try:
        raise ValueError("\x1b[2J\n2026-11-23 ERROR faked")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    told = Lines(FORMAT).format(record)
    assert "\x1b" not in told and not [line for line in told.split("\n")[1:] if not line.startswith(" ")]


@pytest.fixture(scope="module")
def box(node_home: Path) -> Iterator[str]:
    label = os.fsdecode(b"team=" + TITLE) + MARKUP
    argv = [*ROCKROLL, "up", "--memory", "128m", "--label", label, "--json"]
    (made,) = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)
    yield made["id"]
    subprocess.run([*ROCKROLL, "down", made["id"]], capture_output=True, timeout=60)


def on_terminal(*arguments: str, code: int = 0) -> bytes:
    """What a person sees: both streams on a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [*ROCKROLL, *arguments])
    seen = b""
    try:
        while data := os.read(terminal, 1 << 16):
            seen += data
    except OSError:  # EIO: nobody has the other end any more
        pass
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code, seen
    return seen


def evil_words() -> str:
    return "".join(f"\\x{byte:02x}" for byte in EVIL)


def test_output_is_made_harmless_on_a_terminal_and_only_there(box: str) -> None:
    script = f"printf '{evil_words()}'; printf '{evil_words()}' >&2"
    code = ["exec", box, "--session", "s", "--", script]
    told = on_terminal(*code)
    assert not DRIVES.search(told) and told.count(rb"\x1b]52;c;") == 2
    piped = subprocess.run([*ROCKROLL, *code], capture_output=True, check=True, timeout=60)
    assert (piped.stdout, piped.stderr) == (EVIL, EVIL)
    assert CLIPBOARD in on_terminal("exec", box, "--session", "s", "--raw", "--", script)


def test_logs_and_commands_are_harmless_on_a_terminal(box: str) -> None:
    script = f"printf '{evil_words()}'; : $'{evil_words()}' '{MARKUP}'"
    on_terminal("exec", box, "--id", "evil", "--session", "s", "--", script)
    for arguments in (["logs", box], ["logs", box, "--tail", "3"], ["follow", box, "evil"], ["commands", box]):
        assert not DRIVES.search(on_terminal(*arguments)), arguments


def test_labels_processes_and_variables_are_harmless(box: str) -> None:
    on_terminal("exec", box, "--session", "s", "--", f"(exec -a $'{evil_words()}{MARKUP}' sleep 60) &")
    on_terminal("env", box, os.fsdecode(b"EVIL=" + TITLE) + MARKUP)
    for arguments in (["ls"], ["ps", box], ["env", box], ["stats", box]):
        told = on_terminal(*arguments)
        assert not DRIVES.search(told), (arguments, told)
        assert arguments[0] == "stats" or MARKUP[:20].encode() in told, "markup is text"


def test_file_names_are_harmless_in_copies_and_errors(box: str, tmp_path: Path) -> None:
    name = f"$'{evil_words()}'"
    on_terminal(
        "exec", box, "--session", "s", "--", f"mkdir -p /srv/d/{name.replace('/', '')} && cd /srv/d && mkfifo p{name}"
    )
    told = on_terminal("cp", f"{box}:/srv/d", str(tmp_path / "d"))
    assert b"left out" in told and not DRIVES.search(told.replace(b"\x1b[K", b"")), told
    assert not DRIVES.search(on_terminal("cp", os.fsdecode(b"/no/" + TITLE), f"{box}:/srv/x", code=1))
    assert not DRIVES.search(on_terminal("cp", f"{box}:/no/" + os.fsdecode(TITLE), str(tmp_path / "y"), code=1))
    assert not DRIVES.search(on_terminal("exec", box, "--", os.fsdecode(TITLE), code=127))
