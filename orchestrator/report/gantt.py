"""Timelines of a pipeline drawn one below the other over the same time, a lane a stage.

Places are shares of the width, so that the picture fills a wide page and a phone with text that keeps its size;
numbers that would not fit their bar at the narrower width are for the wide one alone. A timeline of more than
`_MOST_HINTED` actions is drawn without hints and numbers, one of more than `_MOST_BARS` by what share of each small
piece of time a stage did what; the picture scrolls sideways where its bars would get too thin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from markupsafe import Markup, escape

from orchestrator.report import scales
from orchestrator.report.charts import empty
from orchestrator.report.timeline import KINDS, Span, Timeline, name, place

_MOST_HINTED, _MOST_BARS = 1100, 2600
_MOST_PIECES = 4000  # of time, over all lanes of a timeline, when there are too many bars
_PARTS = 20  # of a piece's height
_LEAST_PIXELS = 5  # of a bar on average, else the picture scrolls
_MOST_PIXELS = 1600  # of the picture
_NARROW, _WIDE = 200, 720  # pixels that the bars have on the smallest phone, and from 900 pixels of window on
_DIGIT, _AROUND = 6.2, 3.0  # pixels of a digit, and of what must be free beside the number
_SHADES = 4
_HEAD = 24  # pixels of a title's row
_COLOURS = {"F": "s0", "R": "s3", "B": "s1", "W": "s2", "U": "s4"}


def draw(timelines: Sequence[tuple[str, Timeline]]) -> Markup:
    """Draw timelines, each under its title, over one axis of time."""
    if not timelines:
        return empty("no timeline yet")
    length_s = max(timeline.length_s for _, timeline in timelines) or 1e-9
    tall = 24 if max(len(timeline.stages) for _, timeline in timelines) <= 16 else 15
    busiest = max(len(spans) for _, timeline in timelines for spans in timeline.stages)
    coarse = any(timeline.num_spans > _MOST_BARS for _, timeline in timelines)
    least = 0 if coarse else min(_LEAST_PIXELS * busiest, _MOST_PIXELS)
    body, lanes, y = [], [], 0
    for title, timeline in timelines:
        lanes.append('<span class="over"></span>')
        body.append(f'<text class="head" x="0" y="{y + _HEAD - 7}">{escape(title)}</text>')
        y += _HEAD
        for stage, spans in enumerate(timeline.stages):
            lanes.append(f"<span>{escape(timeline.lane(stage))}</span>")
            body.append(f'<rect class="lane" y="{y + 2}" width="100%" height="{tall - 4}"/>')
            body += _lane(spans, stage, timeline, length_s, y + 2, tall - 4, least)
            y += tall
    described = ", ".join(title for title, _ in timelines)
    picture = (
        f'<svg style="height:{y + 22}px" role="img" aria-label="{escape(described)}">'
        f"{''.join(_marks(length_s, y))}{''.join(body)}</svg>"
    )
    return Markup(
        f'<div class="gantt" style="--row:{tall}px;--least:{least}px"><div class="lanes">{"".join(lanes)}</div>'
        f'<div class="bars">{picture}</div></div>{_key(timelines, length_s)}'
    )


def _lane(
    spans: Sequence[Span], stage: int, timeline: Timeline, length_s: float, top: int, tall: int, least: int
) -> Iterator[str]:
    """Yield the bars of a stage."""

    def share(seconds: float) -> str:
        return f"{100 * seconds / length_s:.2f}".rstrip("0").rstrip(".") + "%"

    if timeline.num_spans > _MOST_BARS:
        num_pieces = _num_pieces(timeline)
        view = f'viewBox="0 0 {num_pieces} {_PARTS}" preserveAspectRatio="none"'
        yield f'<svg class="pieces" y="{top}" height="{tall}" style="height:{tall}px" {view}>'
        yield from _pieces(spans, length_s, num_pieces)
        yield "</svg>"
        return
    detailed = timeline.num_spans <= _MOST_HINTED
    chunked = timeline.num_chunks > 1
    middle = top + tall / 2
    for span in spans:
        waited_s = span.ready_s - span.begin_s
        if waited_s > 0.002 * length_s:
            line = f'x1="{share(span.begin_s)}" x2="{share(span.ready_s)}" y1="{middle:g}" y2="{middle:g}"'
            yield f'<line class="wait" {line}/>'
        width = (span.end_s - span.ready_s) / length_s
        box = f'x="{share(span.ready_s)}" y="{top}" width="{share(span.end_s - span.ready_s)}" height="{tall}"'
        kind = f"{'bar' if detailed else 'bar thin'} {_colour(span.kind, span.chunk)}"
        if not detailed:
            yield f'<rect class="{kind}" {box}/>'
            continue
        yield f'<rect class="{kind}" {box}><title>{escape(_hint(span, stage, timeline))}</title></rect>'
        label = place(span, chunked)
        needed = _DIGIT * len(label) + _AROUND
        if tall >= 15 and width * max(_WIDE, least) >= needed:
            fits = "" if width * max(_NARROW, least) >= needed else " roomy"
            at = f'x="{share((span.ready_s + span.end_s) / 2)}" y="{middle:g}" dy=".35em"'
            yield f'<text class="number{fits}" {at}>{label}</text>'


def _hint(span: Span, stage: int, timeline: Timeline) -> str:
    chunked, split = timeline.num_chunks > 1, "W" in timeline.kinds
    what = "input gradients" if split and span.kind == "B" else KINDS[span.kind]
    lines = [
        f"{timeline.lane(stage)}: {name(span, chunked)}, {what} of {timeline.item} {span.microbatch}"
        + (f", chunk {span.chunk}" if chunked else ""),
        f"from {scales.duration(span.ready_s)} to {scales.duration(span.end_s)}: "
        f"{scales.duration(span.end_s - span.ready_s)}",
    ]
    if span.ready_s > span.begin_s:
        lines.append(f"waited {scales.duration(span.ready_s - span.begin_s)} before")
    return "\n".join(lines)


def _num_pieces(timeline: Timeline) -> int:
    return max(120, min(400, _MOST_PIECES // len(timeline.stages)))


def _pieces(spans: Sequence[Span], length_s: float, num_pieces: int) -> Iterator[str]:
    """Yield one path a kind: in each piece of time it is as tall as its share, the kinds on top of each other."""
    piece_s = length_s / num_pieces
    floors = [0.0] * num_pieces
    for kind in KINDS:
        done_s = [0.0] * num_pieces
        for span in (span for span in spans if span.kind == kind):
            last = min(int(span.end_s / piece_s), num_pieces - 1)
            for piece in range(min(int(span.ready_s / piece_s), last), last + 1):
                inside_s = min(span.end_s, (piece + 1) * piece_s) - max(span.ready_s, piece * piece_s)
                done_s[piece] += max(0.0, inside_s)
        tops = [floor + seconds / piece_s for floor, seconds in zip(floors, done_s, strict=True)]
        # rounded, so that pieces alike become one; the heights that remain differ by a pixel
        bars = [
            (_PARTS - round(_PARTS * top), round(_PARTS * top) - round(_PARTS * floor))
            for top, floor in zip(tops, floors, strict=True)
        ]
        floors = tops
        path, at = [], 0
        for (y, height), run in groupby(bars):
            width = sum(1 for _ in run)
            if height > 0:
                path.append(f"M{at} {y}h{width}v{height}h-{width}z")
            at += width
        if path:
            yield f'<path class="{_COLOURS[kind]}" d="{"".join(path)}"/>'


def _marks(length_s: float, bottom: int) -> Iterator[str]:
    marks = [mark for mark in scales.time_ticks(0, length_s, 5) if 0 <= mark <= length_s]
    for mark in marks:
        share = 100 * mark / length_s
        anchor = "start" if share < 4 else "end" if share > 94 else "middle"
        yield f'<line class="grid" x1="{share:.2f}%" x2="{share:.2f}%" y1="0" y2="{bottom + 4}"/>'
        text = escape(scales.duration(mark))
        yield f'<text class="tick" text-anchor="{anchor}" x="{share:.2f}%" y="{bottom + 17}">{text}</text>'


def _key(timelines: Sequence[tuple[str, Timeline]], length_s: float) -> Markup:
    kinds = [kind for kind in KINDS if any(kind in timeline.kinds for _, timeline in timelines)]
    named = {**KINDS, "B": "backward, input gradients"} if "W" in kinds else KINDS
    items = [f'<span><i class="key {_COLOURS[kind]}"></i>{named[kind]}</span>' for kind in kinds]
    coarse = [_num_pieces(timeline) for _, timeline in timelines if timeline.num_spans > _MOST_BARS]
    hatched = any(s.ready_s - s.begin_s > 0.002 * length_s for _, t in timelines for spans in t.stages for s in spans)
    if hatched and not coarse:
        items.append('<span><i class="key waits"></i>waiting for its input</span>')
    items.append('<span><i class="key idle"></i>idle</span>')
    if any(timeline.num_chunks > 1 for _, timeline in timelines):
        shades = "".join(f'<i class="key {_colour("F", chunk)}"></i>' for chunk in range(_shades(timelines)))
        items.append(f"<span>{shades}chunk a, b, \N{HORIZONTAL ELLIPSIS} of a stage</span>")
    if coarse:
        piece = escape(scales.duration(length_s / min(coarse)))
        items.append(f"<span>too many actions to draw each: the height of a colour is its share of each {piece}</span>")
    return Markup(f'<p class="legend">{"".join(items)}</p>')


def _shades(timelines: Sequence[tuple[str, Timeline]]) -> int:
    return min(_SHADES, max(timeline.num_chunks for _, timeline in timelines))


def _colour(kind: str, chunk: int) -> str:
    return f"{_COLOURS[kind]} d{chunk % _SHADES}" if chunk % _SHADES else _COLOURS[kind]
