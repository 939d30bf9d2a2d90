"""Every code block of README and of the first two pages is run, in order, in one shell a page.

as_printed.py has the rules. Training included, and all three pages: `scripts/test --slow tests/docs`, as CI does.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rockroll import Sandbox
from rockroll.sandbox.node_client import close_node

ROOT = Path(__file__).parents[2]
SAYS = {"README.md": "hello world", "docs/index.md": "hello world", "docs/how.md": "hello from outside"}
"""The pages, and what a program of each prints."""
RULES = Path(__file__).with_name("as_printed.py")
REAL_HOME = Path(os.environ.get("ROCKROLL_HOME") or Path.home() / ".rockroll")
_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def script(page: str) -> str:
    """The page's blocks as one script: shell lines as they are, programs in files, named files written."""
    lines = ["set -eo pipefail", f'ruled() {{ "{sys.executable}" "{RULES}" "$@"; }}']
    lines += ['git() { ruled git "$@"; }', 'rockroll() { ruled rockroll "$@"; }']
    for number, (kind, title, text) in enumerate(_BLOCK.findall((ROOT / page).read_text()), 1):
        assert kind in ("bash", "python", "yaml"), f"{page}: block {number} is {kind or 'of no kind'}: it cannot be run"
        assert kind != "yaml" or title, f"{page}: block {number} needs a title, the file that it is"
        lines.append(f"echo '--- {page}, block {number}' >&2")
        if kind == "bash":
            lines.append(text)
            continue
        lines.append(f"cat >{shlex.quote(title or f'block_{number}.py')} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK")
        if not title:
            lines.append(f"{shlex.quote(sys.executable)} block_{number}.py")
    return "\n".join(lines)


def run(page: str, folder: Path, home: Path, mode: str) -> None:
    """Runs it where a clone would be: a folder whose entries are those of the checkout."""
    clone = folder / "rockroll"
    (clone / "scripts").mkdir(parents=True)
    for name in ("recipes", ".venv"):
        (clone / name).symlink_to(ROOT / name)
    for name in ("quickstart", "test", "check"):
        (clone / "scripts" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{RULES}" scripts/{name} "$@"\n')
        (clone / "scripts" / name).chmod(0o755)
    (home / "models").mkdir(exist_ok=True)
    if not (home / "models" / "tiny").exists():
        (home / "models" / "tiny").symlink_to(REAL_HOME / "models" / "tiny")
    begin = folder if "git clone" in (ROOT / page).read_text() else clone
    env = {**os.environ, "ROCKROLL_HOME": str(home), "ROCKROLL_DOCS": mode, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(["bash", "-c", script(page)], cwd=begin, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert SAYS[page] in done.stdout
    if mode == "whole" and page != "docs/how.md":
        assert done.stdout.count("held-out pass rate") >= 2


@pytest.mark.timeout(300)  # two dozen processes one after the other: seconds, but not on a busy machine
@pytest.mark.parametrize("page", ["README.md", "docs/how.md"])
def test_every_block_runs_but_for_training(page: str, tmp_path: Path, node_home: Path) -> None:
    run(page, tmp_path, node_home, "parts")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", SAYS)
def test_every_block_runs(page: str, tmp_path: Path, node_home: Path) -> None:
    run(page, tmp_path, node_home, "whole")


async def test_the_benchmark_of_the_page_is_graded_in_a_box(
    tmp_path: Path, node_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/bring.md: each case is of one split, the test is unseen by the agent, right and wrong are told apart."""
    page = (ROOT / "docs" / "bring.md").read_text()
    (program,) = (text for kind, _, text in _BLOCK.findall(page) if kind == "python")
    (tmp_path / "my_bench.py").write_text(program)
    cases = [{"instruction": f"{n}", "files": {"n": f"{n}"}, "test": f"grep -qx {n} done"} for n in range(10)]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_bench", raising=False)
    bench = importlib.import_module("my_bench").Bench()
    seen = {split: {bench.situation(seed, split).instruction for seed in range(40)} for split in ("train", "eval")}
    assert seen["eval"] == {"0", "5"} and len(seen["train"]) == 8 and not seen["train"] & seen["eval"]
    situation = bench.situation(2, "train")
    async with Sandbox() as sandbox:
        await sandbox.write_file("/work/n", situation.files["n"])
        assert await bench.grade(sandbox, situation) == 0.0
        await sandbox.execute(["cp", "n", "done"], cwd="/work")
        assert await bench.grade(sandbox, situation) == 1.0
    await close_node()
