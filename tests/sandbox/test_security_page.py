"""docs/security.md names a test for each row; here each of them is looked for."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(test_[a-z0-9_]+)(…?)`", (ROOT / "docs/security.md").read_text())
    written = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        written.update(re.findall(r"def (test_[a-z0-9_]+)", file.read_text()))
    missing = [
        name for name, cut in named if not any(test == name or (cut and test.startswith(name)) for test in written)
    ]
    assert len(named) > 40 and missing == []
