"""Which commands leave a shell as it was: certainty, not likelihood."""

from __future__ import annotations

import pytest

from rockroll.sandbox.exec.stateless import Surroundings

STATE = (
    b'#braceexpand:hashall expand_aliases\ndeclare -- x="1"\nf () \n{ \n    cd /\n}\ndeclare -f f\ndeclare -fx my-ls\n'
)


@pytest.mark.parametrize(
    "command", [b"true", b"ls", b"ls -la /srv", b"/usr/bin/make -j4 CFLAGS=-O2 all", b"cat *.txt\n", b"echo a b"]
)
def test_a_program_with_plain_words_keeps_nothing(command: bytes) -> None:
    assert Surroundings(STATE).unchanged_by(command)


@pytest.mark.parametrize(
    "command",
    [
        b"", b"x=1", b"x=1 ls", b"cd /srv", b"export A=b", b". file", b"f", b"my-ls a", b"ls; cd /", b"ls\ncd /",
        b"ls &", b"ls $(cd /)", b"ls `cd /`", b"ls ${x:=5}", b"ls $((x=5))", b"ls >file", b"exec ls", b"eval ls",
        b"{ ls", b"! ls",
        b"[ -e x ]", b"read x", b"trap - INT", b"fg %1", b"ls | cat", b"ls 'a'", b"ls a\\ b", b"[[ x ]]", b"time ls",
        b"function ls", b"ls() { cd /; }", b"ls ~", b"a[1]=2", b"x+=1", b"printf -v x a", b"ls #", b"wait", b"exit 3",
    ],
)  # fmt: skip
def test_what_may_keep_something_is_never_taken_for_plain(command: bytes) -> None:
    assert not Surroundings(STATE).unchanged_by(command)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"#a:b autocd\ndeclare -- x\n",
        STATE + b"alias ls='cd /; ls'\n",
        STATE + b"trap -- 'x=1' DEBUG\n",
        STATE + b"ls () \n{ \n    cd /\n}\n",
        STATE + b"declare -fx ls\n",
    ],
)
def test_where_a_word_may_mean_more_nothing_is_plain(state: bytes) -> None:
    assert not Surroundings(state).unchanged_by(b"ls")
