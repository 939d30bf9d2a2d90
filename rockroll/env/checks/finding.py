"""What a check of somebody's task found: one finding a rule, and the report of all.

Pure data, as `rockroll env check --json` prints it. Leaves the rules to env_rules.py and work_rules.py.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail", "skipped"]


class Finding(msgspec.Struct, frozen=True):
    """One rule, and how the task kept it. warn: it works, and something is worth knowing."""

    name: str
    level: Level
    detail: str
    cure: str = ""


class Report(msgspec.Struct, frozen=True):
    task: str
    kind: str
    """Env, SandboxTask, or ? where it could not be made."""
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return all(finding.level != "fail" for finding in self.findings)
