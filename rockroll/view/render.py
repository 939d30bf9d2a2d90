"""Templates to markup.

In: a template's name and its values. Out: HTML, in which every value is escaped unless it is Markup that this room made
itself. Leaves what the values are to the pages.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup

from rockroll.view.chart import number, strip
from rockroll.view.text import visible

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
    )
    environment.filters |= {
        "number": number,
        "visible": lambda text: visible(str(text)),
        "duration": duration,
        "clock": lambda at: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)),
        "part": lambda text: quote(str(text), safe=""),
        "but": lambda fields, name, value=None: (
            {key: each for key, each in fields.items() if key != name} | ({} if value is None else {name: value})
        ),
        "query": lambda pairs: urlencode(list(pairs.items() if isinstance(pairs, dict) else pairs)),
    }
    environment.globals |= {"strip": strip, "inlined": inlined}
    return environment


@functools.cache
def inlined() -> dict[str, Markup]:
    """Style and script for a page that stands alone, and the policy under which they alone may run.

    Neither contains a closing tag of its own kind: both are this room's files.
    """
    css, js = ((HERE / "static" / name).read_text() for name in ("view.css", "view.js"))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js)]
    policy = f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    return {"css": Markup(css), "js": Markup(js), "policy": Markup(policy)}


def duration(seconds: float) -> str:
    """Short: 0.53 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
