"""`rockroll view` stays fast with very many episodes."""

from __future__ import annotations

import pytest

from rockroll.bench import view


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_100_000_episodes_opens_in_a_second_and_a_trajectory_in_100_ms() -> None:
    figures = view.measure(100_000)["figures"]
    assert figures["view_open_ms"] < 1000 and figures["trajectory_ms"] < 100, figures
    assert max(figures[name] for name in ("episodes_page_ms", "filtered_page_ms", "groups_page_ms")) < 1000, figures
