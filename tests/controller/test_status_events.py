"""What the rollout tells becomes what the display shows."""

from __future__ import annotations

from rockroll.controller.progress import status_events
from rockroll.observe.status import Status
from rockroll.rollout.sample import Episode, Event, Placed


def ended(id: str) -> Episode:
    return Episode(id, "shell", 1, 0, 0, "ok", None, 1.0, [], 1, 0.5)


def test_an_episode_is_shown_from_its_start_to_its_end_with_its_last_answer() -> None:
    status = Status("r", 1)
    told = status_events(status)
    told(Event("started", "train", 1, id="a", task="shell"))
    told(Event("started", "train", 2, id="b", task="lake"))
    told(Event("placed", "train", 2, placed=Placed("a", "shell", "box", "alpha", 0.0)))
    told(Event("turn", "train", 2, 7, id="a", said="ls"))
    told(Event("turn", "train", 2, 5, id="a", said="cat x"))
    a, b = status.flights.all()
    assert (a.id, a.task, a.sandbox, a.node, a.turns, a.said) == ("a", "shell", "box", "alpha", 2, "cat x")
    assert (b.task, b.sandbox, b.turns, b.said) == ("lake", "", 0, "")
    assert status.running == 2 and status.tokens == 12
    told(Event("finished", "train", 1, 12, ended("a")))
    assert [flight.id for flight in status.flights.all()] == ["b"] and status.outcomes == {"ok": 1}
