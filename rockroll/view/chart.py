"""Curves as SVG.

In: series of (step, value), with intervals where there are some. Out: markup without styles of its own: what a series
looks like is its class in view.css. Raw points are always drawn; a smoothed line is drawn over them and never instead.
Leaves which metrics there are to pages.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Point = tuple[float, float]
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 26


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line. colour: 0 … 7, the number of its run."""

    name: str
    points: list[Point]
    colour: int = 0
    intervals: dict[float, tuple[float, float]] = field(default_factory=dict)
    """By step: the 95 % interval of the value there."""


def chart(series: Sequence[Series], *, label: str, big: bool = False, smooth: float = 0.0) -> Markup:
    """label: for who cannot see it. smooth: 0 draws a line through the points; up to 0.99 the line is their
    exponential average with that weight of the past, but for series with intervals."""
    width, height = (760, 320) if big else (360, 190)
    most = 1500 if big else 240
    every = [_finite(one.points) for one in series]
    points = [point for one in every for point in one]
    if not points:
        return Markup('<p class="empty">No points yet.</p>')
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + [bound for one in series for pair in one.intervals.values() for bound in pair]
    x0, x1 = min(xs), max(xs)
    if x0 == x1:
        x0, x1 = x0 - 0.5, x1 + 0.5
    ticks = nice_ticks(min(ys), max(ys), 5 if big else 4)
    y0, y1 = ticks[0], ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + (x - x0) / (x1 - x0) * (width - LEFT - RIGHT), 1),
            round(height - BOTTOM - (y - y0) / (y1 - y0) * (height - TOP - BOTTOM), 1),
        )

    out = [
        f'<svg class="chart{" big" if big else ""}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}" data-x0="{x0:.6g}" data-x1="{x1:.6g}" data-left="{LEFT}" '
        f'data-right="{width - RIGHT}" data-top="{TOP}" data-bottom="{height - BOTTOM}">'
    ]
    for tick in ticks:
        _, y = at(x0, tick)
        out.append(f'<path class="grid" d="M{LEFT} {y}H{width - RIGHT}"/>')
        out.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4}">{number(tick)}</text>')
    for tick in [t for t in nice_ticks(x0, x1, 6 if big else 4, whole=True) if x0 <= t <= x1]:
        x, _ = at(tick, y0)
        out.append(f'<text class="x" x="{x}" y="{height - 8}">{number(tick)}</text>')
    thinned = False
    for one, raw in zip(series, every, strict=True):
        shown = thin(raw, most)
        thinned = thinned or len(shown) < len(raw)
        # Points with intervals are few and far apart: an average of them would only lag.
        soft = smooth if not one.intervals else 0.0
        line = thin(smoothed(raw, soft), most) if soft else shown
        data = " ".join(f"{x:g}:{y:.6g}" for x, y in shown)
        out.append(f'<g class="r{one.colour % 8}" data-name="{escape(one.name)}" data-points="{data}">')
        if one.intervals:
            bars = "".join(_bar(at, x, *one.intervals[x]) for x, _ in raw if x in one.intervals)
            out.append(f'<path class="interval" d="{bars}"/>')
        out.append(f'<path class="line" d="{_line([at(*point) for point in line])}"/>')
        dots = "".join("M{} {}h0".format(*at(*point)) for point in shown)
        out.append(f'<path class="dots{" faint" if soft else ""}" d="{dots}"/></g>')
    out.append('<path class="cursor" d=""/></svg>')
    if thinned:
        out.append(f'<p class="note">Of each stretch the lowest and the highest point are drawn, {most} at most.</p>')
    return Markup("".join(out))


def _line(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in places)


def _bar(at, x: float, low: float, high: float) -> str:
    px, top = at(x, high)
    _, bottom = at(x, low)
    return f"M{px} {bottom}V{top}M{px - 3} {top}h6M{px - 3} {bottom}h6"


def strip(rewards: Sequence[tuple[float, str]], low: float, high: float, mean: float) -> Markup:
    """One group's rewards on a line from low to high, equal ones stacked; each is a link. rewards: (reward, href)."""
    width, height = 220, 34
    stacked: dict[float, int] = {}
    span = (high - low) or 1.0
    out = [f'<svg class="strip" viewBox="0 0 {width} {height}" role="group" aria-label="rewards of the group">']
    out.append(f'<path class="grid" d="M8 {height - 8}H{width - 8}"/>')
    x = round(8 + (mean - low) / span * (width - 16), 1)
    out.append(f'<path class="mean" d="M{x} 3V{height - 3}"/>')
    for reward, href in rewards:
        x = round(8 + (reward - low) / span * (width - 16), 1)
        level = stacked[x] = stacked.get(x, -1) + 1
        # More equal ones than there is height for stand beside one another.
        y, aside = height - 8 - (level % 4) * 7, (level // 4) * 6
        x_shown = min(width - 5, x + aside) if x < width / 2 else max(5, x - aside)
        out.append(
            f'<a href="{escape(href)}"><title>reward {number(reward)}</title>'
            f'<circle cx="{x_shown}" cy="{y}" r="3.2"/></a>'
        )
    out.append("</svg>")
    return Markup("".join(out))


def smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """The exponential average: weight of the past 0 … 0.99, without the pull of a start at 0 (as Adam's: arXiv
    1412.6980, section 3)."""
    out: list[Point] = []
    total = norm = 0.0
    for x, y in points:
        total = weight * total + (1 - weight) * y
        norm = weight * norm + (1 - weight)
        out.append((x, total / norm))
    return out


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many, in order: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    out: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        out += sorted(ends)
    return out


LEAST_SPAN = 1e-300
"""Below it a step of an axis would not be a number with all its digits."""


def nice_ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, some `about` of them."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # apart by rounding alone: no step would tell them apart
        low, high = (low - abs(low) * 0.1, high + abs(high) * 0.1) if low else (0.0, 1.0)
    high = max(high, low + LEAST_SPAN)
    rough = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [0.0 if abs(i * step) < step / 1e6 else i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short, as a person reads it."""
    if not math.isfinite(value):
        return str(value)  # a pass rate of which no episode was valid
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.3g}"
    return f"{value:.4g}"


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
