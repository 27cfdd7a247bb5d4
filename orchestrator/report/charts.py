"""Charts as inline SVG whose colours are style-sheet classes, so that one file is legible light, dark and printed.

Hand-made rather than drawn by matplotlib: a tenth of the bytes, text stays text, no import of a second, and
the same numbers give the same bytes. Every function returns markup whose text is already escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from orchestrator.report import scales
from orchestrator.report.scales import Format

WIDTH, HEIGHT = 440, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 38
_MOST_POINTS = 300
_MOST_HINTS = 120


class Line(NamedTuple):
    """One curve: `x` ascending, NaN and infinities leave gaps."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    strong: bool = True


class Band(NamedTuple):
    """The room between two curves, in the colour of the first curve of the picture."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Mark(NamedTuple):
    """A place on the horizontal axis that a line and a word point out."""

    x: float
    label: str


class Axis(NamedTuple):
    """How one axis is labelled and marked."""

    label: str
    show: Format = scales.plain
    whole: bool = False
    zero: bool = False  # the axis starts at zero
    pad: float = 0.0  # room at both ends, in units of the axis


def steps(unit: str) -> Axis:
    """Return the axis of rounds or steps."""
    return Axis(unit, scales.count, whole=True)


class _Scale(NamedTuple):
    marks: list[float]
    place: Callable[[float], float]
    log: bool


def lines(
    curves: Sequence[Line],
    x: Axis,
    y: Axis,
    colours: Sequence[int] | None = None,
    *,
    keyed: bool = True,
    band: Band | None = None,
    mark: Mark | None = None,
) -> Markup:
    """Draw curves over a common x; a positive y over three decades and more gets a logarithmic axis, if not zero.

    Args:
        colours: the number of each curve's colour; default its position.
        keyed: add a legend when there are several curves. band: drawn under them.
        mark: drawn over them, where it is within their reach.
    """
    shown = [(curve, _finite(curve)) for curve in curves]
    points = [point for _, segment in shown for point in segment]
    edges = [_finite(Line("", band.x, edge)) for edge in (band.low, band.high)] if band and points else []
    edges = edges if all(edges) else []
    points += [point for edge in edges for point in edge]
    if not points:
        return empty("no finite value yet")
    x_scale = _scale([p[0] for p in points], x, _LEFT, WIDTH - _RIGHT, log=False)
    wide = not y.zero and min(p[1] for p in points) > 0 and max(p[1] for p in points) > 1000 * min(p[1] for p in points)
    y_scale = _scale([p[1] for p in points], y, HEIGHT - _BOTTOM, _TOP, log=wide)
    body = [_axes(x, y, x_scale, y_scale)]
    numbers = [(colours[index] if colours else index) % 8 for index in range(len(shown))]
    if edges:
        stride = math.ceil(len(edges[0]) / _MOST_POINTS)
        round_it = edges[0][::stride] + edges[1][::-stride]
        outline = "L".join(f"{_n(x_scale.place(px))} {_n(y_scale.place(py))}" for px, py in round_it)
        body.append(f'<path class="band s{numbers[0]}" d="M{outline}z"/>')
    for index, (curve, finite) in enumerate(shown):
        series = f"s{numbers[index]}" + ("" if curve.strong else " faint")
        body.append(f'<path class="line {series}" d="{_path(curve, x_scale, y_scale)}"/>')
        stride = max(1, math.ceil(len(finite) * len(shown) / _MOST_HINTS))
        hinted = finite[::-1][::stride]
        lone = len(finite) <= 2
        for px, py in hinted:
            hint = f"{curve.label}\n{x.label} {x.show(px)}: {y.show(py)}"
            at = f'cx="{_n(x_scale.place(px))}" cy="{_n(y_scale.place(py))}"'
            kind = f"dot {series}" if lone else "hit"
            body.append(f'<circle class="{kind}" {at} r="{3 if lone else 6}"><title>{escape(hint)}</title></circle>')
    if mark and min(p[0] for p in points) <= mark.x <= max(p[0] for p in points):
        body.append(_marked(mark, x_scale.place(mark.x)))
    described = ", ".join(curve.label for curve in curves)
    picture = _svg(body, f"{described} over {x.label}")
    if not keyed or len(curves) + bool(edges) < 2:
        return picture
    return picture + legend([c.label for c in curves], colours=numbers, band=band.label if band and edges else "")


def stacked(
    columns: Sequence[float],
    layers: Sequence[tuple[str, Sequence[float]]],
    x: Axis,
    y: Axis,
    names: Sequence[str] = (),
) -> Markup:
    """Draw one bar a column, the layers on top of each other; many columns are averaged in groups.

    Args:
        names: of a few columns, in place of numbers.
    """
    group = max(1, math.ceil(len(columns) / 110))
    starts = range(0, len(columns), group)
    heights = [[_mean(values[start : start + group]) for start in starts] for _, values in layers]
    totals = [sum(column) for column in zip(*heights, strict=True)]
    if not totals or max(totals) <= 0:
        return empty("nothing measured yet")
    x_scale = _Scale(scales.whole_ticks(columns[0], columns[-1]), _linear(0, len(totals), _LEFT, WIDTH - _RIGHT), False)
    y_scale = _scale([0.0, max(totals)], y, HEIGHT - _BOTTOM, _TOP, log=False)
    width = (WIDTH - _LEFT - _RIGHT) / len(totals)
    places = _linear(columns[0] - 0.5, columns[-1] + 0.5, _LEFT, WIDTH - _RIGHT)
    body = [_axes(x, y, x_scale._replace(place=places, marks=[] if names else x_scale.marks), y_scale)]
    for column, name in enumerate(names):
        at = f'x="{_n(x_scale.place(column) + width / 2)}" y="{HEIGHT - _BOTTOM + 15}"'
        body.append(f'<text class="tick" text-anchor="middle" {at}>{escape(name)}</text>')
    floors = [0.0] * len(totals)
    for index, ((label, _), values) in enumerate(zip(layers, heights, strict=True)):
        bars = []
        for column, value in enumerate(values):
            top, bottom = y_scale.place(floors[column] + value), y_scale.place(floors[column])
            floors[column] += value
            if value > 0:
                left = x_scale.place(column) + width * 0.09
                bars.append(f"M{_n(left)} {_n(bottom)}V{_n(top)}h{_n(width * 0.82)}V{_n(bottom)}z")
        body.append(f'<path class="fill s{index}" d="{"".join(bars)}"><title>{escape(label)}</title></path>')
    labels = [label for label, _ in layers]
    note = f"a bar is the mean of {group} {x.label}s" if group > 1 else ""
    key = legend(labels if len(labels) > 1 else [], note) if note or len(labels) > 1 else Markup("")
    return _svg(body, f"{', '.join(labels)} by {x.label}") + key


def bars(labels: Sequence[str], values: Sequence[float], x: Axis, y: Axis) -> Markup:
    """Draw labelled bars side by side, such as a histogram; labels that would collide are left out."""
    if not values or max(values) <= 0:
        return empty("nothing counted yet")
    y_scale = _scale([0.0, max(values)], y, HEIGHT - _BOTTOM, _TOP, log=False)
    width = (WIDTH - _LEFT - _RIGHT) / len(values)
    body = [_axes(x, y, _Scale([], lambda value: value, False), y_scale)]
    stride = math.ceil(len(values) * (max(map(len, labels)) * 7.5 + 8) / (WIDTH - _LEFT - _RIGHT))
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        left, top = _LEFT + index * width, y_scale.place(value)
        box = f'x="{_n(left + width * 0.08)}" y="{_n(top)}" width="{_n(width * 0.84)}"'
        hint = escape(f"{x.label} {label}: {y.show(value)}")
        tall = _n(HEIGHT - _BOTTOM - top)
        body.append(f'<rect class="fill s0" {box} height="{tall}"><title>{hint}</title></rect>')
        if index % stride == 0:
            at = f'x="{_n(left + width / 2)}" y="{HEIGHT - _BOTTOM + 15}"'
            body.append(f'<text class="tick" text-anchor="middle" {at}>{escape(label)}</text>')
    return _svg(body, f"{y.label} by {x.label}")


def scatter(points: Sequence[tuple[float, float, str]], x: Axis, y: Axis, best: int | None, log_x: bool) -> Markup:
    """Draw points `(x, y, hint)`, the best one marked."""
    finite = [(px, py, hint, i) for i, (px, py, hint) in enumerate(points) if math.isfinite(px) and math.isfinite(py)]
    if not finite:
        return empty("no finite value yet")
    x_scale = _scale([p[0] for p in finite], x, _LEFT, WIDTH - _RIGHT, log=log_x)
    y_scale = _scale([p[1] for p in finite], y, HEIGHT - _BOTTOM, _TOP, log=False)
    body = [_axes(x, y, x_scale, y_scale)]
    for px, py, hint, index in sorted(finite, key=lambda point: point[3] == best):
        at = f'cx="{_n(x_scale.place(px))}" cy="{_n(y_scale.place(py))}"'
        kind = "mark best" if index == best else "mark s0"
        body.append(
            f'<circle class="{kind}" {at} r="{6 if index == best else 4.5}"><title>{escape(hint)}</title></circle>'
        )
    return _svg(body, f"{y.label} over {x.label}")


def legend(labels: Sequence[str], note: str = "", colours: Sequence[int] | None = None, band: str = "") -> Markup:
    """Return the key of a chart as text beside coloured squares.

    Args:
        colours: their numbers; default the positions of the labels. band: what the band of the first colour is.
    """
    numbers = [*(colours or range(len(labels)))]
    items = "".join(
        f'<span><i class="key s{number % 8}"></i>{escape(label)}</span>'
        for label, number in zip(labels, numbers, strict=True)
    )
    if band:
        items += f'<span><i class="key pale s{numbers[0] % 8}"></i>{escape(band)}</span>'
    return Markup(f'<p class="legend">{items}{escape(note)}</p>')


def empty(reason: str) -> Markup:
    """Return what stands where a chart would, with the reason why there is none."""
    return Markup(f'<p class="empty">{escape(reason)}</p>')


def _svg(body: Sequence[str], described: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described)}">'
    return Markup(head + "".join(body) + "</svg>")


def _axes(x: Axis, y: Axis, x_scale: _Scale, y_scale: _Scale) -> str:
    parts = []
    bottom = HEIGHT - _BOTTOM
    for mark in y_scale.marks:
        level = _n(y_scale.place(mark))
        parts.append(f'<path class="grid" d="M{_LEFT} {level}H{WIDTH - _RIGHT}"/>')
        label = escape(y.show(mark))
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{level}" dy=".32em">{label}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{WIDTH - _RIGHT}"/>')
    for mark in x_scale.marks:
        at = x_scale.place(mark)
        anchor = "end" if at > WIDTH - _RIGHT - 12 else "middle"
        parts.append(f'<path class="axis" d="M{_n(at)} {bottom}v4"/>')
        where = f'text-anchor="{anchor}" x="{_n(min(at, WIDTH - 2))}" y="{bottom + 16}"'
        parts.append(f'<text class="tick" {where}>{escape(x.show(mark))}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" text-anchor="middle" x="{_n(middle)}" y="{HEIGHT - 5}">{escape(x.label)}</text>')
    return "".join(parts)


def _marked(mark: Mark, at: float) -> str:
    anchor, beside = ("end", -4) if at > (_LEFT + WIDTH - _RIGHT) / 2 else ("start", 4)
    return (
        f'<path class="at" d="M{_n(at)} {_TOP - 10}V{HEIGHT - _BOTTOM}"/>'
        f'<text class="tick" text-anchor="{anchor}" x="{_n(at + beside)}" y="{_TOP - 2}">{escape(mark.label)}</text>'
    )


def _scale(values: Sequence[float], axis: Axis, start: float, end: float, *, log: bool) -> _Scale:
    low, high = min(values) - axis.pad, max(values) + axis.pad
    if log:
        marks = scales.log_ticks(low, high)
        place = _linear(math.log10(marks[0]), math.log10(marks[-1]), start, end)
        return _Scale(marks, lambda value: place(math.log10(value)), True)
    if axis.whole and start < end:  # a horizontal axis of rounds ends where the rounds end
        return _Scale(scales.whole_ticks(low, high), _linear(low, max(high, low + 1), start, end), False)
    low = min(low, 0.0) if axis.zero else low
    choose = scales.time_ticks if axis.show is scales.duration else scales.ticks
    marks = choose(low, high, 4 if start < end else 5)
    if start < end and low < high:  # a horizontal axis ends where the values end
        inside = [mark for mark in marks if low <= mark <= high]
        if axis.zero and len(inside) < 3:
            inside = [mark for mark in choose(low, high, 7) if low <= mark <= high]
        return _Scale(inside, _linear(low, high, start, end), False)
    if axis.whole:
        marks = [mark for mark in marks if mark == int(mark)]
    return _Scale(marks, _linear(marks[0], max(marks[-1], high), start, end), False)


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * ((value - low) / ((high - low) or 1.0))


def _finite(curve: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


def _path(curve: Line, x_scale: _Scale, y_scale: _Scale) -> str:
    """Return the curve as a path; of each group of many points the least and the largest are kept."""
    group = max(1, math.ceil(len(curve.x) / _MOST_POINTS))
    parts, pen_up = [], True
    for start in range(0, len(curve.x), group):
        block = list(zip(curve.x[start : start + group], curve.y[start : start + group], strict=True))
        finite = [point for point in block if math.isfinite(point[0]) and math.isfinite(point[1])]
        if not finite:
            pen_up = True
            continue
        extremes = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if group > 1 else set(finite)
        for x, y in sorted(extremes):
            parts.append(f"{'M' if pen_up else 'L'}{_n(x_scale.place(x))} {_n(y_scale.place(y))}")
            pen_up = False
    return "".join(parts)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else 0.0


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
