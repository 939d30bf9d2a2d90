"""The site is built strictly, loads nothing from elsewhere, and is searched without a network."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """As `mkdocs build --strict` with that configuration."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=config.parent, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", made)
    assert done.returncode == 0, done.stderr
    return made


def test_every_page_is_in_the_navigation_and_no_link_or_anchor_leads_nowhere(site: Path) -> None:
    """--strict: the build itself says so. Here, that it was looked at."""
    pages = {path.name for path in site.glob("*.html")} - {"404.html"}
    assert pages == {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    start = (site / "index.html").read_text()
    assert [page for page in pages if f'href="{page}"' not in start] == []


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs" / "decisions").mkdir(parents=True)
    for name in ("index.md", "hooks.py"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    config = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"^nav:\n(  .*\n)+", "nav: [index.md]\n", config, flags=re.MULTILINE))
    (tmp_path / "docs" / "index.md").write_text("# A\n[x](nope.md) [y](index.md#nope) [z](../nope.yaml)\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1 and "3 warnings in strict mode" in done.stderr + done.stdout


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert re.findall(r'<(?:script|img|iframe)[^>]*src="?(?:https?:)?//[^>]*', text) == [], page.name
        loaded = [
            tag for tag in re.findall(r"<link[^>]*>", text) if not re.search(r'rel="?(canonical|edit|next|prev)', tag)
        ]
        assert [tag for tag in loaded if re.search(r'href="?(https?:)?//', tag)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style.name


def test_the_search_index_has_the_words_of_the_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = [entry["location"] for entry in index["docs"] if "max_staleness" in entry["text"]]
    assert any(place.startswith("training.html") for place in found)


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_the_search_finds_a_page_without_a_network(served: str) -> None:
    from playwright.sync_api import Error, sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Chromium starts here (scripts/test installs one where it may): {error}")
        page = browser.new_page()
        asked: list[str] = []
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(served) else route.abort())
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served)
        page.focus("[data-md-component=search-query]")
        page.keyboard.type("canary prompt")
        hit = page.wait_for_selector(".md-search-result__link[href*='troubleshooting']")
        assert hit is not None
        assert [url for url in asked if not url.startswith((served, "blob:", "data:"))] == []
        browser.close()
