"""What client and server agree on: a body that was put on a request is the same when it is taken off."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rockroll.errors import UsageError
from rockroll.sandbox import wire
from rockroll.sandbox.http.codec import CODECS, Codec

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
IDS = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,12}", fullmatch=True)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="="), max_size=8)
BYTES = st.binary(max_size=20)
BODIES = [
    st.builds(wire.List, all=st.booleans(), labels=st.dictionaries(KEYS, WORDS), state=st.sampled_from([None, "gone"])),
    st.builds(wire.Run, id=IDS, command=BYTES, session=NAMES, timeout=st.none() | st.floats(0, 1e6)),
    st.builds(wire.Execute, id=IDS, argv=st.lists(WORDS), env=st.dictionaries(WORDS, WORDS), stdin=BYTES),
    st.builds(wire.Start, id=IDS, command_id=WORDS, command=st.none() | BYTES, argv=st.none() | st.lists(WORDS)),
    st.builds(wire.SendInput, id=IDS, command_id=NAMES, data=BYTES, end=st.booleans()),
    st.builds(wire.SendSignal, id=IDS, command_id=NAMES, signal=st.sampled_from([1, 9, 15])),
    st.builds(wire.ReadOutput, id=IDS, command_id=NAMES, offset=st.integers(0, 2**60), follow=st.booleans()),
    st.builds(wire.SetEnv, id=IDS, changes=st.dictionaries(WORDS, st.none() | WORDS)),
    st.builds(wire.Signal, id=IDS, pid=st.integers(1, 2**22), signal=WORDS, birth=st.integers(0, 2**60)),
    st.builds(wire.ReadFile, id=IDS, path=BYTES, offset=st.integers(0, 2**60), limit=st.integers(0, 2**40)),
    st.builds(wire.WriteFile, id=IDS, path=BYTES, data=st.just(b""), mode=st.integers(0, 0o7777), append=st.booleans()),
    st.builds(wire.MakeFolder, id=IDS, path=BYTES, mode=st.integers(0, 0o7777)),
    st.builds(wire.MoveFile, id=IDS, source=BYTES, target=BYTES),
    st.builds(wire.RemoveFile, id=IDS, path=BYTES, recursive=st.booleans()),
    st.builds(wire.WatchFiles, id=IDS, path=BYTES, recursive=st.booleans()),
    st.builds(wire.Fork, id=IDS, name=st.none() | NAMES, owner=st.sampled_from(["connection", "detached"])),
]
METHODS: dict[type, list[str]] = {}
for _method, _type in wire.BODIES.items():
    METHODS.setdefault(_type, []).append(_method)


def carried(codec: Codec, body: wire.Struct, **more: Any) -> wire.Struct:
    """Put on a request, and taken off again as the server does."""
    request = codec.encode(body, **more)
    place = urlsplit(f"http://host{request.url}")
    pattern = re.escape(f"/v1{codec.route.path}")
    for name in codec.path_fields:
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>.*)")
    found = re.fullmatch(pattern, unquote(place.path), re.DOTALL)
    assert found
    return codec.decode(found.groupdict(), place.query.encode(), request.json or b"").body


@settings(max_examples=150, deadline=None)
@given(st.one_of(BODIES))
def test_any_body_arrives_as_it_was_sent(body: wire.Struct) -> None:
    for method in METHODS[type(body)]:
        for codec in CODECS.get(method, []):
            if codec.fits(body):
                lease = "l" if getattr(body, "owner", "") == "connection" else None
                assert carried(codec, body, lease=lease) == body


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([codec for codecs in CODECS.values() for codec in codecs]), BYTES, BYTES, IDS)
def test_whatever_is_sent_is_a_body_or_a_usage_error(codec: Codec, query: bytes, content: bytes, id: str) -> None:
    try:
        asked = codec.decode(dict.fromkeys(codec.path_fields, id), query, content)
    except UsageError as error:
        assert len(error.message) > 10
    else:
        msgspec.msgpack.encode(asked.body)


def test_the_first_route_that_fits_is_the_one() -> None:
    restart = wire.Restore(id="a", restart=True)
    assert [codec.route.path for codec in CODECS["sandbox.restore"] if codec.fits(restart)] == [
        "/sandboxes/{id}/restart"
    ]
    append = wire.WriteFile(id="a", path=b"/x", data=b"", append=True)
    assert [codec.route.verb for codec in CODECS["file.write"] if codec.fits(append)] == ["POST"]


def test_a_value_that_cannot_be_is_named() -> None:
    (read,) = CODECS["file.read"]
    with pytest.raises(UsageError, match="offset"):
        read.decode({"id": "a"}, b"path=/x&offset=many")
    (mkdir,) = CODECS["file.mkdir"]
    with pytest.raises(UsageError, match="octal"):
        mkdir.decode({"id": "a"}, b"", b'{"path": "/x", "mode": "9"}')
