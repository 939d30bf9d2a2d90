"""The pages, as a FastAPI application.

In: the runs, a token. Out: HTML that works without its script; server-sent events; single files to take away. Leaves
what stands on a page to curves.py, episodes.py, trajectory.py and logs.py, who may come in to gate.py, and looks to
templates/ and static/.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from rockroll.observe.trace import NAME as TRACE
from rockroll.sandbox.http.gate import LOOPBACK
from rockroll.view import curves, logs
from rockroll.view.chart import chart
from rockroll.view.curves import Facts
from rockroll.view.episode_page import EpisodePages, Place
from rockroll.view.episodes import ORDERS, PAGE, Episodes, Filter
from rockroll.view.gate import Gate
from rockroll.view.live import Live
from rockroll.view.render import HERE, render
from rockroll.view.runs import Run, Runs
from rockroll.view.text import visible
from rockroll.view.vocabulary import Vocabularies

MOST_RUNS = 8
"""Curves on one chart: there are so many colours."""
MOST_PAGES = 10**9
Names = Annotated[list[str] | None, Query()]
_FILE = re.compile(r"[a-z_]+-\d+")


def create_app(runs: Runs, *, token: str | None, hosts: Collection[str] | None = LOOPBACK) -> FastAPI:
    """token: None lets everybody in. hosts: what a Host header may name; None: anything."""
    live = Live(runs)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await live.start()
        yield
        await live.close()

    app = FastAPI(title="rockroll view", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.live = live
    app.add_middleware(Gate, token=token, hosts=hosts)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.include_router(Pages(runs, live).router)

    @app.exception_handler(HTTPException)
    async def not_here(_: Request, error: HTTPException) -> Response:
        page = render("message.jinja", title=f"{error.status_code}", said=str(error.detail), runs=runs, watched="")
        return HTMLResponse(page, error.status_code)

    return app


class Pages:
    """Every page is a method; what it needs of a run, `_run` finds by its name in the address."""

    def __init__(self, runs: Runs, live: Live) -> None:
        self._runs, self._live = runs, live
        self._episodes = EpisodePages(runs, Vocabularies())
        self.router = APIRouter()
        for path, page in (
            ("/", self.curves),
            ("/metric", self.metric),
            ("/r/{name}/", self.run),
            ("/r/{name}/episodes", self.episodes),
            ("/r/{name}/groups", self.groups),
            ("/r/{name}/errors", self.errors),
            ("/r/{name}/logs", self.logs),
            ("/r/{name}/trace.json", self.trace),
            ("/r/{name}/e/{file}/{line}", self.episode),
            ("/r/{name}/e/{file}/{line}/export", self.export),
            ("/r/{name}/e/{file}/{line}/record", self.record),
            ("/r/{name}/named/{id}", self.named),
            ("/events", self.events),
        ):
            self.router.add_api_route(path, page, methods=["GET"], response_model=None)

    # ---- curves ----------------------------------------------------------------------------------------------------

    def curves(self, run: Names = None, smooth: float = 0.0) -> Response:
        chosen, smooth = self._runs.chosen(run or [], MOST_RUNS), _weight(smooth)
        found = curves.sections(chosen)
        firsts = [name for name in curves.FIRST if any(name in of_section for _, of_section in found)]
        others = [(section, [name for name in of_section if name not in firsts]) for section, of_section in found]
        return self._page(
            "curves.jinja",
            title="Curves",
            watched="metrics runs episodes",
            facts=self._facts(chosen),
            chosen=[each.name for each in chosen],
            smooth=smooth,
            firsts=[(name, self._chart(chosen, name, smooth)) for name in firsts],
            sections=[
                (section, [(name, self._chart(chosen, name, smooth)) for name in of_section])
                for section, of_section in others
                if of_section
            ],
            query=_query(run or [], smooth),
            only=chosen[0] if len(chosen) == 1 else None,
        )

    def metric(self, name: str, run: Names = None, smooth: float = 0.0) -> Response:
        chosen, smooth = self._runs.chosen(run or [], MOST_RUNS), _weight(smooth)
        found = curves.series(chosen, name)
        if not found:
            raise HTTPException(404, f"none of these runs has a metric {visible(name)!r}")
        steps = sorted({x for one in found for x, _ in one.points}, reverse=True)[:500]
        by_step = [dict(one.points) for one in found]
        table = [(x, [each.get(x) for each in by_step], [one.intervals.get(x) for one in found]) for x in steps]
        return self._page(
            "metric.jinja",
            title=name,
            watched="metrics",
            name=name,
            smooth=smooth,
            chosen=[each.name for each in chosen],
            series=found,
            drawn=chart(found, label=curves.described(found, name), big=True, smooth=smooth),
            table=table,
            query=_query(run or [], smooth),
            only=chosen[0] if len(chosen) == 1 else None,
        )

    def _chart(self, chosen: list[Run], name: str, smooth: float) -> Any:
        found = curves.series(chosen, name)
        return chart(found, label=curves.described(found, name), smooth=smooth) if found else ""

    def _facts(self, chosen: list[Run]) -> list[Facts]:
        """Of every run; those that are drawn have a colour."""
        colours = {run.name: i for i, run in enumerate(chosen)}
        return [curves.facts(run, colours.get(run.name, -1)) for run in self._runs]

    # ---- one run ---------------------------------------------------------------------------------------------------

    def run(self, name: str) -> Response:
        from rockroll.observe.running import running

        run = self._run(name)
        return self._page(
            "run.jinja",
            title=run.name,
            watched="metrics episodes running",
            run=run,
            facts=curves.facts(run, 0),
            running=running(run.path),
            trace=(run.path / TRACE).is_file(),
        )

    def episodes(
        self,
        name: str,
        split: str = "",
        outcome: str = "",
        cause: str = "",
        task: str = "",
        step: str = "",
        group: str = "",
        text: str = "",
        order: str = "newest",
        page: int = 1,
    ) -> Response:
        run = self._run(name)
        asked = Filter(
            split=split,
            outcome=outcome,
            cause=cause,
            task=task,
            step=_whole(step),
            group=_whole(group),
            text=text,
            order=order if order in ORDERS else "newest",
            page=min(max(1, page), MOST_PAGES),
        )
        known = Episodes(run)
        found, rows = known.list(asked)
        fields = {key: value for key, value in vars(asked).items() if value not in ("", None) and key != "page"}
        return self._page(
            "episodes.jinja",
            title="Episodes",
            watched="episodes",
            run=run,
            asked=asked,
            fields=fields,
            found=found,
            rows=rows,
            pages=max(1, -(-found // PAGE)),
            orders=list(ORDERS),
            splits=known.counts("split"),
            tasks=known.counts("task"),
            outcomes=known.counts("outcome", asked),
            causes=known.counts("cause", asked),
        )

    def groups(self, name: str, step: int | None = None, order: str = "group") -> Response:
        run = self._run(name)
        known = Episodes(run)
        steps = known.steps()
        at = step if step in steps else (steps[-1] if steps else 0)
        found = known.groups(at)
        if order == "spread":
            found.sort(key=lambda group: -group.deviation)
        elif order == "mean":
            found.sort(key=lambda group: group.mean)
        rewards = [reward for group in found for reward in group.rewards]
        place = steps.index(at) if at in steps else 0
        return self._page(
            "groups.jinja",
            title="Groups",
            watched="episodes",
            run=run,
            step=at,
            before=steps[place - 1] if place > 0 else None,
            after=steps[place + 1] if place + 1 < len(steps) else None,
            order=order,
            groups=found,
            low=min(rewards, default=0.0),
            high=max(rewards, default=1.0),
            drawn=[(title, self._chart([run], title, 0.0)) for title in (curves.SPREAD, curves.EQUAL)],
        )

    def errors(self, name: str) -> Response:
        run = self._run(name)
        failures = Episodes(run).failures()
        return self._page("errors.jinja", title="Errors", watched="episodes", run=run, failures=failures)

    def logs(self, name: str, log: str = "") -> Response:
        run = self._run(name)
        known = logs.names(run)
        log = log if log in known else (known[0] if known else "")
        return self._page(
            "logs.jinja", title="Logs", watched="logs", run=run, names=known, log=log, lines=logs.tail(run, log)
        )

    def trace(self, name: str) -> Response:
        run = self._run(name)
        if not (run.path / TRACE).is_file():
            raise HTTPException(404, f"{visible(name)} has no time line: records.trace_mb was 0, or it is an early run")
        called = re.sub(r"[^\w.-]", "_", f"{name}-{TRACE}")
        return FileResponse(run.path / TRACE, media_type="application/json", filename=called)

    # ---- one episode -----------------------------------------------------------------------------------------------

    def episode(self, name: str, file: str, line: int, branch: int = 0, start: int = 0) -> Response:
        return HTMLResponse(self._episodes.page(self._place(name, file, line), branch, start))

    def export(self, name: str, file: str, line: int) -> Response:
        place = self._place(name, file, line)
        called = re.sub(r"[^\w.-]", "_", f"{name}-{place.row['id']}", flags=re.ASCII)  # a header is Latin-1
        # Shown from here it would have this server's rights; taken away it has none.
        headers = {"content-disposition": f'attachment; filename="{called}.html"'}
        return HTMLResponse(self._episodes.export(place), headers=headers)

    def record(self, name: str, file: str, line: int) -> Response:
        place = self._place(name, file, line)
        headers = {"content-disposition": 'attachment; filename="record.json"'}
        return Response(Episodes(place.run).raw(place.row), media_type="application/json", headers=headers)

    def named(self, name: str, id: str) -> Response:
        row = Episodes(self._run(name)).named(id)
        if row is None:
            raise HTTPException(404, f"the run has no record of an episode {visible(id)!r}: one at work has none yet")
        return RedirectResponse(f"/r/{name}/e/{row['file'].removesuffix('.jsonl')}/{row['line']}", 303)

    async def events(self) -> Response:
        return StreamingResponse(self._live.events(), media_type="text/event-stream")

    # ---- what they share -------------------------------------------------------------------------------------------

    def _page(self, template: str, **values: Any) -> Response:
        return HTMLResponse(render(template, runs=self._runs, **values))

    def _run(self, name: str) -> Run:
        if run := self._runs.get(name):
            return run
        raise HTTPException(404, f"no run {visible(name)!r} is shown here")

    def _place(self, name: str, file: str, line: int) -> Place:
        run = self._run(name)
        if (
            not _FILE.fullmatch(file)
            or not 0 <= line < MOST_PAGES
            or (row := Episodes(run).at(f"{file}.jsonl", line)) is None
        ):
            raise HTTPException(404, "no such record: was its step done again after a resume?")
        return Place(run, row)


def _weight(smooth: float) -> float:
    return min(0.99, max(0.0, smooth)) if smooth == smooth else 0.0


def _whole(text: str) -> int | None:
    """A number of a form's field, which is empty where nothing was typed."""
    return int(text) if re.fullmatch(r"\d{1,15}", text.strip()) else None


def _query(names: list[str], smooth: float) -> list[tuple[str, Any]]:
    return [("run", name) for name in names] + ([("smooth", smooth)] if smooth else [])
