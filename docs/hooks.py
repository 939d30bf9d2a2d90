"""What mkdocs does beside its own: links out of docs/, a page of decisions, and no page that is left out.

In: pages of docs/. Out: the same, where a link to a file of the repository goes to it on the forge, and is a warning
(an error with --strict) where there is no such file; pages that nobody put into mkdocs.yml stand at the end of the
navigation. Leaves links within docs/ to mkdocs.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_log = logging.getLogger("mkdocs.hooks.rockroll")
_LINK = re.compile(r"\]\((\.\./[^)#\s]*)")


def on_config(config: Any) -> Any:
    """Pages that the navigation does not name stand under "More"."""
    docs = Path(config["docs_dir"])
    named = set(_pages(config["nav"]))
    found = [str(path.relative_to(docs)) for path in sorted(docs.glob("*.md"))]
    if left := [name for name in found if name not in named]:
        config["nav"].append({"More": left})
    decisions = sorted((docs / "decisions").glob("*.md"))
    config["nav"].append({"Decisions": ["decisions/index.md", *(f"decisions/{path.name}" for path in decisions)]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """The list of decisions, made of their titles."""
    lines = ["# Decisions", "", "What was asked, what was measured, what was chosen.", ""]
    for path in sorted(Path(config["docs_dir"], "decisions").glob("*.md")):
        lines.append(f"* [{path.read_text().splitlines()[0].lstrip('# ')}]({path.name})")
    files.append(File.generated(config, "decisions/index.md", content="\n".join(lines)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links to files of the repository outside docs/."""
    docs = Path(config["docs_dir"]).resolve()
    root, here = docs.parent, (docs / page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = (here / match[1]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        if not target.exists():
            _log.warning("%s links to %s, which is not there", page.file.src_uri, match[1])
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config['extra']['forge']}/{kind}/main/{target.relative_to(root)}"

    return _LINK.sub(moved, markdown)


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for each in (nav.values() if isinstance(nav, dict) else nav) for page in _pages(each)]
