"""The table of causes, row by row: from what is known to whose doing it was and what becomes of the score."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from rockroll.rollout.clock import Expired
from rockroll.rollout.sample import OUTCOMES
from rockroll.rollout.verdict import TABLE, AgentRun, Happened, Verdict, of_agent, of_time

POLICY = Verdict("truncated", "policy", "failure")
BUDGET = Verdict("truncated", "policy", "earned")
BOX = Verdict("infra_error", "infra", "replaced")


@pytest.mark.parametrize(
    ("known", "happened", "verdict"),
    [
        # it came to its end, whatever it met on the way
        ({}, "finished", Verdict("ok", None, "earned")),
        ({"events": {"oom_kills": 1, "pids_refused": 9}, "disk_full": True}, "finished", Verdict("ok", None, "earned")),
        # it broke by itself
        ({"exit_code": 1}, "agent_crashed", Verdict("ok", "agent", "earned")),
        ({"exit_code": 139}, "agent_crashed", Verdict("ok", "agent", "earned")),
        # a command of the policy's ruined it
        ({"exit_code": 137}, "agent_killed", POLICY),
        ({"exit_code": 143}, "agent_killed", POLICY),
        ({"outcome": "killed", "exit_code": 137}, "shell_ended", POLICY),
        ({"outcome": "closed", "exit_code": 3}, "shell_ended", POLICY),
        ({"outcome": "oom", "exit_code": 137, "events": {"oom_kills": 1}}, "memory", POLICY),
        ({"outcome": "oom", "exit_code": 137}, "shell_ended", POLICY),
        ({"exit_code": 1, "events": {"oom_kills": 1}}, "memory", POLICY),
        ({"outcome": "killed", "events": {"oom_kills": 1}}, "memory", POLICY),
        ({"exit_code": 1, "events": {"pids_refused": 40}}, "pids", POLICY),
        ({"exit_code": 1, "disk_full": True}, "disk", POLICY),
        ({"outcome": "timeout", "exit_code": None}, "agent_time", POLICY),
        # its own box
        ({"outcome": "lost", "exit_code": None, "box": "exited"}, "box_ended", POLICY),
        ({"outcome": "lost", "exit_code": None, "box": "oom"}, "box_memory", POLICY),
        ({"outcome": "lost", "exit_code": None, "box": "killed"}, "box_lost", BOX),
        ({"outcome": "lost", "exit_code": None, "box": "node_lost"}, "box_lost", BOX),
        ({"outcome": "lost", "exit_code": None, "box": "runtime_crash"}, "box_lost", BOX),
        ({"outcome": "lost", "exit_code": None, "box": "ttl"}, "box_lost", BOX),
        ({"outcome": "lost", "exit_code": None, "box": "owner_gone"}, "box_lost", BOX),
        ({"outcome": "lost", "exit_code": None, "box": "deleted"}, "box_lost", BOX),
        ({"outcome": "lost", "exit_code": None, "box": None}, "box_lost", BOX),
        ({"outcome": "killed", "exit_code": 137, "box_died": True}, "box_lost", BOX),
        # budgets
        ({"over_budget": True}, "budget", BUDGET),
        ({"over_budget": True, "exit_code": 1}, "budget", BUDGET),
        ({"over_budget": True, "outcome": None}, "budget", BUDGET),
        ({"outcome": None}, "agent_persisted", BUDGET),
        # the policy was never asked
        ({"asked": False, "exit_code": 1}, "agent_mute", Verdict("env_error", "agent", "replaced")),
        ({"asked": False, "outcome": "oom"}, "agent_mute", Verdict("env_error", "agent", "replaced")),
        ({"asked": False, "outcome": "lost", "box": "exited"}, "agent_mute", Verdict("env_error", "agent", "replaced")),
        ({"asked": False, "outcome": "lost", "box": "node_lost"}, "box_lost", BOX),
    ],
)
def test_an_agent_s_end(known: dict[str, Any], happened: str, verdict: Verdict) -> None:
    run = AgentRun(**{"asked": True, "outcome": "ok", **known})
    assert of_agent(run) == happened
    assert TABLE[of_agent(run)] == verdict


@pytest.mark.parametrize(
    ("expired", "verdict"),
    [
        (Expired("agent", "agent", 1), POLICY),
        (Expired("stall", "agent", 1), POLICY),
        (Expired("cap", "agent", 1), POLICY),
        (Expired("stall", "env", 1), Verdict("timeout", "env", "replaced")),
        (Expired("cap", "env", 1), Verdict("timeout", "env", "replaced")),
        (Expired("stall", "engine", 1), Verdict("timeout", "infra", "replaced")),
        (Expired("cap", "engine", 1), Verdict("timeout", "infra", "replaced")),
        (Expired("stall", "ours", 1), Verdict("timeout", "infra", "replaced")),
        (Expired("cap", "ours", 1), Verdict("timeout", "infra", "replaced")),
    ],
)
def test_a_limit_of_time(expired: Expired, verdict: Verdict) -> None:
    assert TABLE[of_time(expired)] == verdict


def test_only_what_env_and_infrastructure_did_is_replaced_and_what_the_policy_did_never() -> None:
    assert set(TABLE) == set(get_args(Happened))
    for happened, row in TABLE.items():
        assert row.outcome in OUTCOMES
        assert (row.score == "replaced") == (row.outcome not in ("ok", "truncated")), happened
        if row.cause == "policy":
            assert row.score != "replaced", happened
        if row.cause in ("env", "infra"):
            assert row.score == "replaced", happened
        if row.score == "failure":
            assert row.cause == "policy", happened
