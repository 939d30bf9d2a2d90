"""Who may see the pages, what they say, and that nothing of a sandbox gets out of its text."""

from __future__ import annotations

import fcntl
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from rockroll.errors import UsageError
from rockroll.view.pages import create_app
from rockroll.view.runs import Run, Runs
from tests.view import made
from tests.view.made import HOSTILE

TOKEN = "a-token-of-some-length"


def client(folder: Path, **options: object) -> TestClient:
    app = create_app(Runs([folder]), **({"token": None, "hosts": {"testserver"}} | options))  # type: ignore[arg-type]
    return TestClient(app, follow_redirects=False)


@pytest.fixture(scope="module")
def pages(made_runs: Path) -> Iterator[TestClient]:
    for path in made_runs.iterdir():
        list(Run(path, path.name).refreshing())
    with client(made_runs) as found:
        yield found


@pytest.fixture
def guarded(made_runs: Path) -> Iterator[TestClient]:
    with client(made_runs, token=TOKEN) as found:
        yield found


class Marks(HTMLParser):
    """The tags and attributes of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


# ---- who may come in ------------------------------------------------------------------------------------------------


def test_without_the_token_there_is_a_door_and_nothing_behind_it(guarded: TestClient) -> None:
    for path in ("/", "/r/shell-a/episodes", "/events", "/r/shell-a/e/train-000001/0/record", "/nowhere"):
        answer = guarded.get(path)
        assert answer.status_code == 401 and "shell-a" not in answer.text
    assert guarded.get("/", params={"token": "wrong"}).status_code == 401
    assert guarded.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert guarded.get("/", headers={"cookie": "rockroll-view-80=wrong"}).status_code == 401


def test_the_token_becomes_a_cookie_and_leaves_the_address(guarded: TestClient) -> None:
    answer = guarded.get("/r/shell-a/episodes", params={"token": TOKEN, "outcome": "ok"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/r/shell-a/episodes?outcome=ok")
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=lax" in answer.headers["set-cookie"]
    assert guarded.get("/").status_code == 200, "the cookie is enough"


def test_a_bearer_header_is_enough(guarded: TestClient) -> None:
    assert guarded.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_another_name_for_this_address_is_refused(pages: TestClient) -> None:
    assert pages.get("/", headers={"host": "evil.example"}).status_code == 421


def test_another_origin_s_page_may_not_ask(pages: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert pages.get("/r/shell-a/e/train-000001/0/record", headers=headers).status_code == 403


def test_every_answer_carries_the_policy(pages: TestClient) -> None:
    for path in ("/", "/static/view.js", "/nowhere", "/r/shell-a/episodes"):
        headers = pages.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_only_reading_is_possible(pages: TestClient) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(pages, method)("/").status_code == 405


def test_no_path_leads_out_of_the_runs(pages: TestClient) -> None:
    for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/r/..%2f..%2fetc/episodes"):
        assert pages.get(path).status_code == 404
    assert pages.get("/r/shell-a/e/..%2f..%2fx-1/0").status_code == 404
    assert "root:" not in pages.get("/r/shell-a/logs", params={"log": "../../../../../../etc/passwd"}).text


# ---- text of others -------------------------------------------------------------------------------------------------

EVIL = "<img src=x onerror='window.pwned = 3'>"


def addresses(pages: TestClient) -> list[str]:
    base = f"/r/{quote(EVIL, safe='')}"
    listed = pages.get(f"{base}/episodes").text
    episodes = sorted(set(re.findall(r'href="(/r/[^"]+/e/train-000002/\d+)"', listed)))
    assert episodes
    metric = quote(HOSTILE, safe="")
    return [
        *("/", f"/?run={quote(EVIL, safe='')}", f"/metric?name={metric}", f"{base}/", f"{base}/episodes"),
        *(f"{base}/groups?step=2", f"{base}/errors", f"{base}/logs", *episodes, f"{episodes[0]}/export"),
        *(f"/r/{metric}/", f"{base}/episodes?text={metric}&outcome={metric}&order={metric}", f"{base}/named/{metric}"),
    ]


def test_no_text_becomes_markup_anywhere(pages: TestClient) -> None:
    for address in addresses(pages):
        page = pages.get(address).text
        for tag, attributes in Marks(page).tags:
            assert tag != "img", address
            assert tag != "script" or attributes in ({}, {"src": "/static/view.js", "defer": None}), address
            assert not any(name.startswith("on") for name in attributes), address
            assert not (attributes.get("href") or "").lower().startswith("javascript:"), address
        assert "&gt;49" not in page, "a template of theirs was run"


def test_the_hostile_text_is_there_to_be_read(pages: TestClient) -> None:
    page = pages.get(addresses(pages)[8]).text
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt;" in page
    assert "\\x1b[31m\\u202e" in page and "\u202e" not in page and "\x1b" not in page
    assert page.count("<summary>what the agent printed") == 1 and "<h2>log</h2>" not in page


def test_numbers_that_are_none_are_no_defects(pages: TestClient) -> None:
    for path in (
        "/?smooth=nan",
        "/?smooth=1e9",
        "/?run=nobody",
        "/r/shell-a/episodes?page=99999999999999999999&step=x&group=-1",
        "/r/shell-a/groups?step=77777",
        "/r/shell-a/e/train-000001/0?branch=-5&start=-9",
    ):
        assert pages.get(path).status_code == 200, path
    for path in ("/r/shell-a/e/train-000001/99999999999999999999", "/metric?name=x", "/r/shell-a/named/x"):
        assert pages.get(path).status_code == 404, path


# ---- what they say --------------------------------------------------------------------------------------------------


def rows(page: str) -> list[str]:
    return re.findall(r"<tr data-row>", page)


def test_episodes_are_filtered_by_outcome_step_group_and_text(pages: TestClient) -> None:
    base = "/r/shell-a/episodes"
    page = pages.get(base).text
    assert "infra_error <small>1</small>" in page and "cancelled <small>1</small>" in page
    assert f"{24 * 32 + 3 + 2} episodes, page 1 of 16" in page
    assert len(rows(pages.get(base, params={"outcome": "infra_error"}).text)) == 1
    assert len(rows(pages.get(base, params={"step": "3", "group": "13"}).text)) == 8
    assert len(rows(pages.get(base, params={"text": "died under"}).text)) == 1
    assert len(rows(pages.get(base, params={"split": "eval"}).text)) == 3
    assert len(rows(pages.get(base, params={"page": "16"}).text)) == 773 - 15 * 50


def test_groups_show_their_spread(pages: TestClient) -> None:
    page = pages.get("/r/shell-a/groups", params={"step": "3"}).text
    assert len(rows(page)) == 4 and page.count("<circle") == 32
    assert "groups/reward_std" in page and "groups/all_equal" in page


def test_an_error_comes_with_the_logs_of_its_time(made_runs: Path, pages: TestClient) -> None:
    import time

    at = 1795417700.0 + 24 * 4

    def line(second: float, text: str) -> str:
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at + second))},000 WARNING x: {text}\n"

    log = line(-100, "long before") + line(0.2, "the box is gone") + " a traceback's line\n" + line(99, "long after")
    (made_runs / "shell-a" / "rockroll.log").write_text(log)
    failures = pages.get("/r/shell-a/errors").text
    assert "sandbox aa203451c6a9 died under its agent" in failures
    (address,) = re.findall(r'href="(/r/shell-a/e/discarded-[^"]+)"', failures)
    page = pages.get(address).text
    assert "the box is gone" in page and "a traceback&#39;s line" in page
    assert "long before" not in page and "long after" not in page


def test_runs_are_compared_and_chosen(pages: TestClient) -> None:
    both = pages.get("/metric", params={"name": "reward/mean", "run": ["shell-a", "shell-b"]}).text
    one = pages.get("/metric", params={"name": "reward/mean", "run": ["shell-b"]}).text
    assert both.count("data-points=") == 2 and one.count("data-points=") == 1


def test_an_export_needs_nothing_else(pages: TestClient) -> None:
    answer = pages.get("/r/shell-a/e/train-000001/0/export")
    assert "attachment" in answer.headers["content-disposition"]
    marks = Marks(answer.text)
    for _, attributes in marks.tags:
        assert not attributes.keys() & {"src", "action"} and not (attributes.get("href") or "#").startswith("/")
    (policy,) = [a["content"] for t, a in marks.tags if t == "meta" and "http-equiv" in a]
    assert policy and policy.startswith("default-src 'none'; style-src 'sha256-")


def test_an_export_of_a_run_with_another_alphabet_s_name_can_be_taken_away(tmp_path: Path, made_model: Path) -> None:
    made.run(tmp_path / "实验", made_model, steps=1)
    with client(tmp_path) as pages:
        answer = pages.get(f"/r/{quote('实验')}/e/train-000001/0/export")
    assert answer.status_code == 200 and 'filename="__-train' in answer.headers["content-disposition"]


def test_a_pass_rate_that_is_no_number_hides_nothing(tmp_path: Path) -> None:
    """That of a step in which no held-out episode was valid."""
    known = {"eval/pass_rate": 0.5, "reward/mean": 0.5}
    curves_of(tmp_path, {"step": 0, **known}, {"step": 1, **dict.fromkeys(known, math.nan)})
    with client(tmp_path) as pages:
        for path in ("/", "/r/a/", "/metric?name=eval/pass_rate"):
            assert pages.get(path).status_code == 200, path
        assert "a: nan at step 1, lowest 0.5, highest 0.5" in pages.get("/metric?name=eval/pass_rate").text


def test_a_task_s_pass_rate_has_its_interval_too(tmp_path: Path) -> None:
    curves_of(tmp_path, {"step": 0, "eval/pass_rate/b": 0.5, "eval/ci95_low/b": 0.25, "eval/ci95_high/b": 0.75})
    with client(tmp_path) as pages:
        page = pages.get("/").text
    assert page.count('class="interval"') == 1 and "ci95" not in page


def curves_of(folder: Path, *rows: dict[str, float]) -> None:
    """A run `a` of these rows."""
    (folder / "a").mkdir()
    (folder / "a" / "recipe.yaml").write_text("steps: 1\n")
    (folder / "a" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_that_somebody_writes_to_is_said_to_train(tmp_path: Path) -> None:
    run = Run(tmp_path, "r")
    assert not run.going_on
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run.going_on
    assert not run.going_on


def test_a_folder_without_runs_is_wrong_usage(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=re.escape(f"{path} has no recipe.yaml")):
            Runs([path])


def test_runs_of_one_name_are_told_apart(made_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "shell-a").symlink_to(made_runs / "shell-a")
    assert [run.name for run in Runs([made_runs / "shell-a", tmp_path / "shell-a"])] == ["shell-a", "shell-a-2"]


def test_the_time_line_can_be_taken_away_where_there_is_one(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("model: tiny\n")
    (tmp_path / "with" / "trace.json").write_text("[]\n")
    with client(tmp_path) as pages:
        assert "/r/with/trace.json" in pages.get("/r/with/").text
        answer = pages.get("/r/with/trace.json")
        assert answer.json() == [] and "attachment" in answer.headers["content-disposition"]
        assert "trace.json" not in pages.get("/r/without/").text
        assert pages.get("/r/without/trace.json").status_code == 404


# ---- several agents -------------------------------------------------------------------------------------------------


def test_of_several_agents_each_has_its_branches_its_calls_and_what_became_of_it(pages: TestClient) -> None:
    path = "/r/shell-b/e/train-000008/0"
    first, second = pages.get(path).text, pages.get(path, params={"branch": 1}).text
    assert "<h2>Conversation of asker</h2>" in first and "<h2>Conversation of solver</h2>" in second
    assert ">1 asker</a>" in first and ">2 solver</a>" in first
    assert '<th scope="row">solver</th><td>agent_crashed</td><td class="n">0</td>' in first
    assert "exit code 3: it said nothing" in first and "what solver printed" in first
    assert first.count("<td>asker</td>") + first.count("<td>solver</td>") >= 2, "each call says whose it is"
    assert "Conversation of solver, branch 2 of 2" in pages.get(f"{path}/export").text
