"""The pages in a browser: headless Chromium, the real command, runs that were made up.

`scripts/test --slow tests/view/test_browser.py -k pictures --screenshots` writes those of docs/view.md.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.view import made

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = Path(__file__).parents[2] / "docs" / "images"
EPISODE = "/r/shell-a/e/train-000012/9"
TEAM = "/r/shell-b/e/train-000008/0"
EVERY = ("/", "/r/shell-a/", "/r/shell-a/episodes", "/r/shell-a/groups", EPISODE, "/metric?name=eval/pass_rate",
         "/r/shell-a/errors", "/r/shell-a/logs", TEAM, f"{TEAM}?branch=1")  # fmt: skip
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1200, "height": 800}


@dataclass
class Look:
    """One page of one browser, and whatever went wrong on it."""

    page: Page
    base: str
    wrong: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        self.page.goto(self.base + path)
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import Error, sync_playwright

    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        try:
            # The sandbox of a browser needs what a container often has not; what is shown is ours.
            made = playwright.chromium.launch(executable_path=next(filter(None, paths), None), args=["--no-sandbox"])
        except Error as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Chromium starts here (scripts/test installs one where it may): {error}")
        yield made
        made.close()


@contextmanager
def viewing(*runs: Path) -> Iterator[str]:
    """`rockroll view`; the URL that it prints."""
    argv = [sys.executable, "-m", "rockroll", "view", *map(str, runs), "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().split()[1]
        process.terminate()
        assert process.wait(20) == 0, "the command did not end well"


@pytest.fixture(scope="module")
def address(made_runs: Path) -> Iterator[str]:
    with viewing(made_runs) as url:
        yield url


@pytest.fixture(scope="module")
def shared(browser: Browser, address: str) -> Iterator[Look]:
    page = browser.new_context(viewport=DESK, color_scheme="light").new_page()  # type: ignore[arg-type]
    look = Look(page, address.partition("/?")[0])
    page.on("pageerror", lambda error: look.wrong.append(str(error)))
    page.on("console", lambda said: look.wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (look.wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: look.asked.append(request.url))
    page.goto(address)
    yield look


@pytest.fixture
def look(shared: Look) -> Iterator[Look]:
    """At a desk, by day. A page that complains, or asks anybody else for anything, fails its test."""
    shared.page.set_viewport_size(DESK)  # type: ignore[arg-type]
    shared.page.emulate_media(color_scheme="light")
    shared.wrong.clear()
    shared.asked.clear()
    yield shared
    assert shared.wrong == []
    assert [url for url in shared.asked if not url.startswith(shared.base)] == []


def style(page: Page, selector: str, name: str) -> str:
    return page.eval_on_selector(selector, "(one, name) => getComputedStyle(one)[name]", name)


def test_the_token_is_gone_from_the_address(look: Look) -> None:
    assert "token" not in look.go("/").url


def test_smoothing_is_chosen_said_and_leaves_the_raw_points(look: Look) -> None:
    page = look.go("/metric?name=reward/mean&run=shell-a")
    raw = page.get_attribute(".dots", "d")
    assert "exponential" not in page.inner_text("#drawn") and page.locator(".dots.faint").count() == 0
    page.select_option("#smooth", "0.8")
    page.wait_for_url("**smooth=0.8*")
    assert "exponential average, weight 0.8" in page.inner_text("#drawn")
    assert page.get_attribute(".dots.faint", "d") == raw


def test_evaluations_have_their_intervals_and_the_arrow_keys_tell_values(look: Look) -> None:
    page = look.go("/metric?name=eval/pass_rate&run=shell-a")
    bars = page.get_attribute(".interval", "d")
    assert bars and bars.count("V") == 7
    page.focus("[data-curve]")
    page.keyboard.press("End")
    assert page.inner_text("[data-readout]").startswith("step 24: shell-a 0.")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("[data-readout]").startswith("step 20: ")


def test_a_run_that_is_not_chosen_is_not_drawn(look: Look) -> None:
    page = look.go("/")
    figure = page.locator("figure", has_text="reward/mean").first
    assert figure.locator("g .line").count() == 3
    page.uncheck("input[value=shell-b]")
    page.wait_for_url("**run=**")
    assert page.locator("figure", has_text="reward/mean").first.locator("g .line").count() == 2


def test_metrics_are_found_by_part_of_their_name(look: Look) -> None:
    page = look.go("/")
    page.keyboard.press("/")
    page.keyboard.type("grad")
    assert [name for name in page.locator(".metric:visible figcaption").all_inner_texts()] == ["loss/grad_norm"]


def test_a_trajectory_is_coloured_by_what_is_asked_for(look: Look) -> None:
    page = look.go(EPISODE)
    assert page.locator(".talk li.answer h3").first.inner_text().startswith("command 1")
    token = ".tokens span.s b"
    seen = {}
    for colour in ("mask", "log-prob", "advantage", "weight version"):
        page.get_by_label(colour, exact=True).check()
        seen[colour] = (style(page, token, "backgroundColor"), style(page, token, "borderBottomColor"))
        assert page.locator(".coloured .legend:visible").count() == 1
    assert len(set(seen.values())) == 4
    assert style(page, ".tokens span.c b", "backgroundColor") == "rgba(0, 0, 0, 0)"


def test_a_token_tells_what_is_known_of_it_to_the_keyboard(look: Look) -> None:
    page = look.go(EPISODE)
    page.focus("[data-tokens]")
    page.keyboard.press("End")
    said = page.inner_text(".coloured [data-readout]")
    for part in ("<|end|>", "log-prob -", "advantage", "weight version 1"):
        assert part in said


def test_the_keyboard_is_enough(look: Look) -> None:
    page = look.go("/r/shell-a/episodes")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert style(page, ":focus", "outlineStyle") == "solid", "the focus is seen"
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = page.evaluate("document.activeElement.textContent")
    assert second == page.locator("tbody th a").nth(1).inner_text()
    page.keyboard.press("n")
    page.wait_for_url("**page=2*")
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url("**/groups")
    page.keyboard.press("p")
    page.wait_for_url("**step=23*")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


UNNAMED = """() => [...document.querySelectorAll(
        "input:not([type=hidden]), select, button, a, svg[role=img], [tabindex='0']")]
    .filter((one) => !(one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim()))
    .map((one) => one.outerHTML.slice(0, 100))"""
FAINT = """() => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const over = (top, below) => top[3] === undefined ? top
        : top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
    const behind = (one) => one === null ? [255, 255, 255]
        : over(channels(getComputedStyle(one).backgroundColor), behind(one.parentElement));
    return [...document.querySelectorAll("main *, header *")]
        .filter((one) => one.offsetParent && [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
        .map((one) => {
            const back = behind(one), front = over(channels(getComputedStyle(one).color), back);
            const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), one.outerHTML.slice(0, 80)];
        }).filter(([ratio]) => ratio < 4.5);
}"""


def test_everything_is_named_and_fits_a_phone_and_is_readable_by_day_and_by_night(look: Look) -> None:
    page = look.page
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    for path in EVERY:
        look.go(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
        assert page.evaluate(UNNAMED) == [], path
        for scheme, background in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(15, 19, 23)")):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert style(page, "html", "backgroundColor") == background
            assert page.evaluate(FAINT) == [], (path, scheme)


def test_no_text_of_a_run_is_ever_run(look: Look, tmp_path: Path) -> None:
    page = look.go("/")
    name = page.locator("a", has_text="<img").first.get_attribute("href")
    assert name
    look.go(f"{name}episodes?step=2")
    episode = page.locator("tbody th a").first.get_attribute("href")
    assert episode
    for path in (name, f"{name}episodes", f"{name}groups?step=2", f"{name}errors", f"{name}logs", episode):
        look.go(path)
        assert page.evaluate("window.pwned") is None, path
    export = tmp_path / "episode.html"
    with page.expect_download() as download:
        page.click("text=take away as one file")
    download.value.save_as(export)
    alone = page.context.new_page()
    wrong: list[str] = []
    alone.on("console", lambda said: wrong.append(said.text))
    alone.goto(export.as_uri())
    assert alone.evaluate("window.pwned") is None and wrong == []
    alone.get_by_label("advantage", exact=True).check()
    alone.focus("[data-tokens]")
    alone.keyboard.press("End")
    assert "log-prob" in alone.inner_text(".coloured [data-readout]"), "its own script runs"
    assert style(alone, ".tokens span.s b", "borderBottomStyle") == "solid", "its own style holds"
    alone.close()


def test_a_page_follows_its_run_as_it_trains(look: Look, made_runs: Path, made_model: Path) -> None:
    page = look.go("/")
    page.wait_for_selector("#live:not([hidden])")
    page.evaluate("window.same = true")
    draw = random.Random(5)
    made.add(made_runs / "shell-b", 9, draw, 9)
    page.wait_for_selector("tr:has-text('shell-b') td:has-text('9 of 8')")
    made.run(made_runs / "shell-new", made_model, steps=1)
    page.wait_for_selector("tr:has-text('shell-new')")
    assert page.evaluate("window.same"), "it was not loaded anew"
    (made_runs / "shell-b" / "running").mkdir()
    look.go("/r/shell-b/")
    page.wait_for_selector("#live:not([hidden])")
    at_work = '{"id": "train-9-0-0-1", "sandbox": "0123456789ab", "node": "big", "began_at": 1795417700.0}'
    (made_runs / "shell-b" / "running" / "train-9-0-0-1.json").write_text(at_work)
    page.wait_for_selector("text=/train-9-0-0-1$/")
    (made_runs / "shell-b" / "running" / "train-9-0-0-1.json").unlink()
    page.wait_for_selector("#running .empty")


@pytest.mark.slow
def test_the_pictures_of_the_docs(
    browser: Browser, made_runs: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = IMAGES if request.config.getoption("--screenshots") else tmp_path
    folder.mkdir(exist_ok=True)
    page = browser.new_page()

    def shoot(name: str, path: str, scheme: Any, width: int, height: int, at: str = "") -> None:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        page.goto(base + path)
        if path != EPISODE:
            page.wait_for_selector("#live:not([hidden])")
        if at:
            page.get_by_label("advantage", exact=True).check()
            page.evaluate("(at) => document.querySelector(at).scrollIntoView()", at)
        page.screenshot(path=folder / f"view-{name}.png")

    with viewing(made_runs / "shell-a", made_runs / "shell-b") as url:
        base = url.partition("/?")[0]
        page.goto(url)
        shoot("curves", "/?smooth=0.6", "light", 1000, 620)
        shoot("groups", "/r/shell-a/groups?step=12", "light", 1000, 560)
        shoot("episode-dark", EPISODE, "dark", 1000, 700, "#conversation")
        shoot("phone", "/?smooth=0.6", "dark", 390, 720)
        page.close()
    for path in folder.glob("view-*.png"):
        assert 5_000 < path.stat().st_size < 200_000
