"""The table of a sandbox's states."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rockroll.errors import SandboxError
from rockroll.sandbox import box, wire

EVENTS = ["started", "stop", "start", "died", "pause", "unpause"]


@given(st.lists(st.sampled_from(EVENTS)))
def test_every_state_takes_death_and_no_event_leads_to_an_unknown_state(events: list[box.Event]) -> None:
    state: wire.State = "starting"
    for event in events:
        try:
            state = box.after(state, event)
        except SandboxError as error:
            assert state in str(error) and event in str(error)
        assert box.after(state, "died") in ("exited", "stopped")
