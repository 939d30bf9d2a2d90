"""A recipe that a test writes down."""

from pathlib import Path

import pytest


@pytest.fixture
def recipe(tmp_path: Path):
    """Takes a recipe's text, returns where it stands."""

    def write(text: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return path

    return write
