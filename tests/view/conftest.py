"""A made-up run for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.view import made


@pytest.fixture(scope="session")
def made_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.model(tmp_path_factory.mktemp("models") / "words")


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory: pytest.TempPathFactory, made_model: Path) -> Path:
    """A folder with a longer run, a shorter one and a hostile one."""
    folder = tmp_path_factory.mktemp("runs")
    made.run(folder / "shell-a", made_model, steps=24)
    made.run(folder / "shell-b", made_model, steps=8, seed=2, team=True)
    made.hostile(folder / "<img src=x onerror='window.pwned = 3'>", made_model)
    return folder
