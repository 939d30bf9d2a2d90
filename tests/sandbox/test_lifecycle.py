"""The tables of a sandbox's states and of the causes of its death."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import SandboxError
from rockroll.sandbox import wire
from rockroll.sandbox.boxes import lifecycle
from rockroll.sandbox.boxes.lifecycle import Facts, cause_of, story

events = st.lists(st.sampled_from(get_args(lifecycle.Event)))
facts = st.builds(
    Facts,
    asked=st.sampled_from([None, *get_args(wire.Cause)]),
    code=st.none() | st.integers(0, 255),
    oom=st.booleans(),
    watched=st.booleans(),
)


@given(events)
def test_every_state_takes_death_and_no_event_leads_to_an_unknown_state(events: list[lifecycle.Event]) -> None:
    state: wire.State = "starting"
    for event in events:
        try:
            state = lifecycle.after(state, event)
        except SandboxError as error:
            assert state in str(error) and event in str(error)
        assert lifecycle.after(state, "died") in ("exited", "stopped", "gone")


@given(events)
def test_what_is_gone_stays_gone_and_every_state_can_go(events: list[lifecycle.Event]) -> None:
    state: wire.State = "starting"
    removed = False
    for event in events:
        try:
            state = lifecycle.after(state, event)
        except SandboxError:
            continue
        removed = removed or event == "removed"
        assert (state == "gone") == removed
        assert lifecycle.after(state, "removed") == "gone"


@given(facts)
def test_every_death_has_one_cause_and_words_for_it(facts: Facts) -> None:
    cause = cause_of(facts)
    assert lifecycle.WORDS[cause] in story(cause, 0.0)
    assert story(cause, 0.0).startswith("1970-01-01 00:00:00 UTC")


@given(facts)
def test_what_was_decided_is_the_cause_and_memory_is_blamed_only_for_a_kill(facts: Facts) -> None:
    cause = cause_of(facts)
    if facts.asked is not None:
        assert cause == facts.asked
    else:
        assert (cause == "oom") == (facts.oom and facts.code == 137)


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        (Facts(code=0), "exited"),
        (Facts(code=3, oom=True), "exited"),
        (Facts(code=137), "killed"),
        (Facts(code=143), "killed"),
        (Facts(code=137, oom=True), "oom"),
        (Facts(code=None), "runtime_crash"),
        (Facts(code=None, watched=False), "node_lost"),
        (Facts(asked="ttl", code=137, oom=True), "ttl"),
    ],
)
def test_the_causes_by_what_is_known(facts: Facts, cause: wire.Cause) -> None:
    assert cause_of(facts) == cause
