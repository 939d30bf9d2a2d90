"""`rockroll env check` finds what is wrong with a task, says what to do, and finds nothing where nothing is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rockroll.cli.main import run
from rockroll.env.check import check
from rockroll.env.checks.finding import Report
from rockroll.env.library import LIBRARIES

GAMES = "tests.env.games"


def tried(name: str, **more: Any) -> Report:
    return check(f"{GAMES}:{name}", steps=60, **more)


@pytest.mark.parametrize("name", ["Guess", "OldGuess", "AsyncGuess"])
def test_a_task_that_keeps_the_contract_has_nothing_said_against_it(name: str) -> None:
    report = tried(name)
    assert report.ok and report.kind == "Env"
    assert {finding.level for finding in report.findings} == {"ok"}


@pytest.mark.parametrize("name", ["rockroll:frozen_lake", "rockroll:sokoban", "rockroll:shell_quiz", "rockroll:shell"])
def test_rockroll_s_own_tasks_keep_it(name: str) -> None:
    assert {finding.level for finding in check(name).findings} == {"ok"}


@pytest.mark.parametrize(
    ("name", "rule", "level", "says"),
    [
        ("OneValue", "reset", "fail", "reset returns (observation, info); got str"),
        ("NumbersShown", "step", "fail", "an observation is text, or a list of token ids; got int"),
        ("WordForReward", "step", "fail", "a reward is a finite number; got 'won'"),
        ("EndlessReward", "step", "fail", "a reward is a finite number; got 1000"),
        ("NumberForFlag", "step", "fail", "an end is told by 0"),
        ("Unseeded", "same seed", "fail", "the first observations are"),
        ("GlobalSeed", "two at once", "fail", "beside another episode"),
        ("Leaves", "reset in the middle", "fail", "left in its middle"),
        ("Parses", "any text", "fail", "the answer '': step raised ValueError"),
        ("Endless", "ends", "warn", "8 of 8 episodes went on for 60 steps"),
        ("Pays", "after the end", "warn", "a step after the end gave reward 1"),
        ("Same", "other seeds", "warn", "8 seeds begin with the same observation"),
        ("Same", "splits", "warn", "64 of 64"),
        ("Slow", "speed", "warn", "a call takes"),
    ],
)
def test_each_broken_rule_is_found_and_comes_with_a_cure(name: str, rule: str, level: str, says: str) -> None:
    report = tried(name)
    found = {finding.name: finding for finding in report.findings}[rule]
    said = says.replace("64 of 64", "1 of 64")
    assert found.level == level and said in found.detail and found.cure
    assert report.ok == (level != "fail")


def test_words_are_asked_for_only_where_none_were_given() -> None:
    for words, asked in (((), True), (("left", "right"), False)):
        cure = next(each.cure for each in tried("Endless", actions=words).findings if each.name == "ends")
        assert "max_turns" in cure and ("--action WORD" in cure) == asked


def test_a_call_that_hangs_is_told_and_the_rest_is_left_out() -> None:
    report = tried("Hangs", limit=0.2)
    found = {finding.name: finding for finding in report.findings}
    assert found["step"].level == "fail" and "did not come back within 0.2 s" in found["step"].detail
    assert found["close"].level == "skipped"


def test_actions_of_one_s_own_are_played() -> None:
    report = check("rockroll:frozen_lake", {"map": "4x4"}, actions=["up"], steps=5)
    ends = next(finding for finding in report.findings if finding.name == "ends")
    assert ends.level == "warn"  # against the edge: a random walk would end sooner or later, this one does not


def test_a_task_in_a_sandbox_is_tried_as_far_as_that_takes_none() -> None:
    report = tried("Work")
    assert report.kind == "SandboxTask"
    levels = {finding.name: finding.level for finding in report.findings}
    assert levels["files"] == "fail" and levels["splits"] == "warn" and levels["same seed"] == "ok"


def test_what_cannot_be_made_or_is_no_task_is_one_finding() -> None:
    assert "neither" in tried("Neither").findings[0].detail
    assert "takes the options highest, split" in check(f"{GAMES}:Guess", {"hihgest": 3}).findings[0].detail
    assert "has no class" in tried("Gues").findings[0].detail


def test_the_command_says_the_same_and_ends_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["env", "check", f"{GAMES}:Guess", "--option", "highest=3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and {"name", "ok", "level", "detail", "cure"} == set(report["checks"][0])
    assert run(["env", "check", f"{GAMES}:Unseeded"]) == 1
    said = capsys.readouterr().out
    assert "FAIL" in said and "breaks" in said
    assert run(["env", "check", f"{GAMES}:Guess", "--option", "highest"]) == 2
    assert "--option is KEY=VALUE" in capsys.readouterr().err


def test_ls_tells_the_tasks_and_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["env", "ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "rockroll:sokoban" in [each["name"] for each in listed["built_in"]]
    assert [each["prefix"] for each in listed["libraries"]] == list(LIBRARIES)
    assert run(["env", "ls"]) == 0
    assert "rockroll env check module:Class" in capsys.readouterr().out
    assert run(["env", "ls", "gymnasia"]) == 2
