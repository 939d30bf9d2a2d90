"""A number that a part of a run reports, with what it is of.

In and out: plain values. Leaves collecting them to the controller, showing them to prometheus.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Number(NamedTuple):
    name: str
    """As Prometheus has it, without rockroll_ in front."""
    says: str
    """What it is, in a sentence."""
    labels: Mapping[str, str]
    value: float
    counter: bool = False
    """It only grows, as long as what it is of lives."""
