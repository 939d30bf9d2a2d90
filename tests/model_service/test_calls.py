"""Which requests are one call, by a clock that the test holds."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from rockroll.model_service.calls import HOLD_S, MAX_HELD, Calls

A, B = b"a", b"b"


def test_two_equal_requests_at_once_are_two_calls():
    calls = Calls()
    first = calls.begin(A)
    assert calls.arrive(A, retry=False) is None
    assert calls.begin(A) != first


def test_a_request_after_a_break_is_the_broken_call_again_with_or_without_a_retry_count():
    for retry in (False, True):
        calls = Calls()
        call = calls.begin(A)
        assert calls.broke(call, 0, retries=True) == "held"
        assert calls.arrive(B, retry=retry) is None
        assert calls.arrive(A, retry=retry) == call
        assert not calls.expire(call, HOLD_S + 1)  # it is heard


def test_a_broken_call_of_a_client_that_does_not_retry_ends_at_once():
    calls = Calls()
    call = calls.begin(A)
    assert calls.broke(call, 0, retries=False) == "ended"
    assert calls.arrive(A, retry=True) is None


def test_an_answer_that_is_there_is_kept_for_any_client():
    calls = Calls()
    call = calls.begin(A)
    calls.answered(call)
    assert calls.broke(call, 0, retries=False) == "held"
    assert calls.arrive(A, retry=False) == call


def test_a_held_call_ends_after_its_time():
    calls = Calls()
    call = calls.begin(A)
    calls.broke(call, 5, retries=True)
    assert not calls.expire(call, 5 + HOLD_S - 0.1)
    assert calls.expire(call, 5 + HOLD_S)
    assert calls.arrive(A, retry=True) is None and len(calls) == 0


def test_a_retry_count_joins_a_call_whose_break_was_not_seen_yet_and_the_late_break_ends_nothing():
    calls = Calls()
    call = calls.begin(A)
    assert calls.arrive(A, retry=True) == call
    assert calls.broke(call, 0, retries=True) == "heard"
    calls.answered(call)
    calls.delivered(call)
    assert calls.arrive(A, retry=True) is None


def test_of_two_equal_calls_a_retry_takes_the_broken_one():
    calls = Calls()
    first, second = calls.begin(A), calls.begin(A)
    calls.broke(first, 0, retries=True)
    assert calls.arrive(A, retry=True) == first
    calls.broke(second, 0, retries=True)
    assert calls.arrive(A, retry=True) == second


def test_a_call_that_failed_or_was_delivered_is_asked_anew():
    calls = Calls()
    for end in (calls.failed, calls.delivered):
        call = calls.begin(A)
        end(call)
        assert calls.arrive(A, retry=True) is None
        assert calls.broke(call, 0, retries=True) == "ended"


def test_only_so_many_answers_wait_and_the_oldest_goes_first():
    calls = Calls()
    held = [calls.begin(b"%d" % i) for i in range(MAX_HELD + 1)]
    for at, call in enumerate(held):
        calls.answered(call)
        calls.broke(call, at, retries=False)
    assert not calls.knows(held[0]) and all(calls.knows(each) for each in held[1:])


class _Clients(RuleBasedStateMachine):
    """Clients that ask, break, retry and are answered, in any order: nobody is given what was delivered, or another's
    question's answer, and nothing is known for longer than it is heard or held."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls()
        self.now = 0.0
        self.keys: dict[int, bytes] = {}
        self.heard: dict[int, int] = {}
        self.ended: set[int] = set()

    @rule(target=requests, key=st.sampled_from([A, B]), retry=st.booleans())
    def ask(self, key: bytes, retry: bool) -> int:
        call = self.calls.arrive(key, retry=retry)
        if call is None:
            call = self.calls.begin(key)
            assert call not in self.keys
            self.keys[call] = key
        assert call not in self.ended and self.keys[call] == key
        assert retry or not self.heard.get(call)
        self.heard[call] = self.heard.get(call, 0) + 1
        return call

    @rule(call=requests)
    def answer(self, call: int) -> None:
        self.calls.answered(call)

    @rule(call=consumes(requests), retries=st.booleans())
    def hang_up(self, call: int, retries: bool) -> None:
        self.heard[call] -= 1
        if self.calls.broke(call, self.now, retries=retries) == "ended":
            self.ended.add(call)

    @rule(call=consumes(requests))
    def take(self, call: int) -> None:
        self.heard[call] -= 1
        self.calls.delivered(call)
        self.ended.add(call)

    @rule(target=requests, seconds=st.floats(0, 2 * HOLD_S))
    def wait(self, seconds: float):  # type: ignore[no-untyped-def]
        self.now += seconds
        for call in self.keys:
            if self.calls.expire(call, self.now):
                assert not self.heard[call]
                self.ended.add(call)
        return multiple()

    @invariant()
    def what_ended_is_forgotten(self) -> None:
        assert not any(self.calls.knows(call) for call in self.ended)


TestClients = _Clients.TestCase
