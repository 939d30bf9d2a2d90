"""What the pages say is so: commands that exist, keys of recipes that exist, errors that are printed, two READMEs."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from rockroll.cli.main import app
from rockroll.controller.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md")])


def commands(page: Path) -> Iterator[str]:
    """The `rockroll …` lines of a page's blocks, as they would be typed."""
    for kind, text in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            typed = line.removeprefix("$ ")
            if typed.startswith("rockroll ") and (kind == "bash" or typed != line):
                yield typed


def test_every_command_of_the_pages_has_these_options() -> None:
    wrong, seen, top = [], 0, typer.main.get_command(app)
    for page in PAGES:
        for line in commands(page):
            seen += 1
            lexed = shlex.shlex(re.sub(r"\$\([^)]*\)", "X", line), posix=True, punctuation_chars=True)
            lexed.whitespace_split = True
            words: list[str] = []
            for word in lexed:
                if word in ("|", ">", "&", "&&", ";", "<"):
                    break
                words.append(word)
            try:
                _parse(top, words[1:])
            except Exception as error:  # noqa: BLE001 - Click's, of whichever copy of Click this Typer has
                wrong.append(f"{page.name}: {line}: {getattr(error, 'message', error)}")
    assert seen > 60 and wrong == []


def _parse(command: Any, words: list[str]) -> None:
    """Click's own reading of the words, without running anything."""
    context = command.make_context("rockroll", list(words))
    if hasattr(command, "commands"):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, f"no command {name}"
        _parse(found, rest)


@pytest.mark.parametrize("page", ["coming.md", "bring.md", "troubleshooting.md", "how.md", "index.md"])
def test_every_recipe_key_of_the_page_is_one(page: str) -> None:
    sections = {field.name for field in dataclasses.fields(RunConfig)}
    text = (ROOT / "docs" / page).read_text()
    ours = "\n".join(re.sub(r"^\|[^|]*\|", "", line) for line in text.splitlines())
    named = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_.]+)[:`]", ours)
    named = [key for key in named if not key.endswith((".jsonl", ".json"))]
    assert [key for key in named if not _is_key(RunConfig, key.split("."))] == []
    assert named or page not in ("coming.md", "troubleshooting.md")


def _is_key(config: Any, parts: list[str]) -> bool:
    if not parts:
        return True
    if typing.get_origin(config) in (typing.Union, types.UnionType, tuple):
        return any(_is_key(each, parts) for each in typing.get_args(config))
    hints = typing.get_type_hints(config) if dataclasses.is_dataclass(config) else {}
    return parts[0] in hints and _is_key(hints[parts[0]], parts[1:])


@cache
def printed() -> list[str]:
    """Every text that rockroll's code and scripts can print; "\\0" where something is filled in."""
    found = [path.read_text() for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for file in (ROOT / "rockroll").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_symptom_is_a_text_that_is_printed() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    symptoms = [text for line in re.findall(r"^### (`.*)$", page, re.MULTILINE) for text in _quoted(line)]
    foreign = {"fork: Resource temporarily unavailable", "Killed", "outcome oom"}  # Bash's, the kernel's, an outcome
    missing = []
    for symptom in set(symptoms) - foreign:
        pattern = re.compile(".*".join(map(re.escape, symptom.split("…"))), re.DOTALL)
        if not any(pattern.search(text) for text in printed()):
            missing.append(symptom)
    assert len(symptoms) > 25 and missing == []


def _quoted(heading: str) -> list[str]:
    """The texts in backticks; one that holds backticks itself is the whole heading."""
    if "`rockroll" in heading[1:]:
        return [heading.strip("`")]
    return re.findall(r"`([^`]+)`", heading)


def test_the_links_of_both_readmes_lead_somewhere() -> None:
    for page in ("README.md", "README.zh.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page} links to {target}"


def test_the_chinese_readme_has_the_same_commands_headings_and_pages() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
    assert _shape(english) == _shape(chinese)


def _shape(text: str) -> dict[str, list[str]]:
    """What two translations share: code without its comments, the levels of headings, the pages linked to."""
    blocks = re.findall(r"^```\w+\n.*?^```$", text, re.DOTALL | re.MULTILINE)
    return {
        "code": [re.sub(r" +# .*", "", block) for block in blocks],
        "headings": re.findall(r"^#+", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE),
        "links": [link for link in re.findall(r"\]\(([^)]+)", text) if not link.startswith("README")],
    }
