"""The parts a page is made of, and how they become one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from orchestrator.report import scales

_MOST_EVENTS = 200
_TRACEBACK = "Traceback (most recent call last):"
_DETAILS = 300  # characters of one event's details


class Figure(NamedTuple):
    """A picture with its title; a wide one takes the whole width."""

    title: str
    picture: Markup
    caption: str = ""
    wide: bool = False


class Section(NamedTuple):
    """A part of the page: figures, a table, pairs or code, whichever it has.

    Args:
        columns: figures side by side where there is room; 3 makes them smaller, less than that changes nothing.
    """

    id: str
    title: str
    figures: Sequence[Figure] = ()
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str | Markup]] = ()
    pairs: Sequence[tuple[str, str]] = ()
    code: Markup = Markup("")
    folded: bool = False
    open: bool = False
    columns: int = 2


class Tile(NamedTuple):
    """One number of the header."""

    label: str
    value: str
    note: str = ""


class Failure(NamedTuple):
    """Why a run ended before its time."""

    title: str
    message: str
    hint: str
    traceback: str


class Page(NamedTuple):
    """A whole page."""

    title: str
    kind: str
    status: str
    facts: Sequence[tuple[str, str]]
    tiles: Sequence[Tile]
    error: Failure | None
    resume: str
    sections: Sequence[Section]

    @property
    def tone(self) -> str:
        """The style class of the status."""
        return tone(self.status)


def render(page: Page) -> str:
    """Return the page as HTML; all text in it is escaped."""
    loader = PackageLoader("orchestrator.report", "")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return jinja.get_template("page.html.j2").render(page=page)


def tone(status: str) -> str:
    """Return the style class of a status."""
    return {"FINISHED": "good", "FAILED": "bad", "RUNNING": "live"}.get(status, "warn")


def resume_command(path: Path, status: str) -> str:
    """Return what to type to go on with a run, sweep or grid that stopped; nothing for others."""
    return f"orchestrator resume {path}" if status in ("INTERRUPTED?", "KILLED", "FAILED") else ""


def failure(manifest: Mapping[str, Any]) -> Failure | None:
    """Return the manifest's error in parts, or None when there is none."""
    error = manifest.get("error")
    if not error:
        return None
    if not isinstance(error, Mapping):
        error = {"message": str(error)}
    where = ", ".join(str(error[key]) for key in ("place", "worker", "node") if error.get(key))
    kind = str(error.get("type") or error.get("kind") or "Error")
    message, marker, rest = str(error.get("message", "")).strip().partition(_TRACEBACK)
    traceback = str(error.get("remote_traceback") or error.get("traceback") or marker + rest).rstrip()
    if not message.strip() and traceback:
        message = traceback.rpartition("\n")[2]
    title = f"{kind} at {where}" if where else kind
    return Failure(title, message.strip(), str(error.get("hint") or ""), traceback)


def highlight(yaml: str) -> Markup:
    """Return YAML with keys, strings, numbers and comments marked."""
    return Markup("\n").join(_highlight_line(line) for line in yaml.rstrip("\n").split("\n"))


def _highlight_line(line: str) -> Markup:
    match = re.match(r"^(\s*(?:- )*)([\w./-]+|'[^']*'|\"[^\"]*\")(:)(\s.*|)$", line)
    if match:
        indent, key, colon, value = match.groups()
        return Markup("{}<b>{}</b>{}{}").format(indent, key, colon, _highlight_value(value))
    indent = re.match(r"^\s*(?:- )*", line)
    head = indent.group() if indent else ""
    return Markup("{}{}").format(head, _highlight_value(line[len(head) :]))


def _highlight_value(text: str) -> Markup:
    bare = text.strip()
    if not bare:
        return escape(text)
    if bare.startswith("#"):
        kind = "c"
    elif re.fullmatch(r"[-+]?(\d[\d_]*\.?\d*([eE][-+]?\d+)?|\.inf|\.nan)", bare):
        kind = "n"
    elif bare in ("true", "false", "null", "~", "[]", "{}"):
        kind = "k"
    else:
        kind = "s"
    return Markup('<span class="{}">{}</span>').format(kind, text)


def event_rows(events: Sequence[Mapping[str, Any]]) -> list[list[str | Markup]]:
    """Return `[time since the first event, kind, details]` of each event, the newest when there are too many."""
    start = float(events[0]["time"]) if events else 0.0
    rows: list[list[str | Markup]] = []
    for event in events[-_MOST_EVENTS:]:
        kind = str(event["kind"])
        mark = Markup('<span class="event {}">{}</span>').format(_tone(kind), kind.replace("_", " "))
        rows.append(["+" + scales.duration(float(event["time"]) - start), mark, _details(event)])
    left_out = len(events) - len(rows)
    if left_out > 0:
        rows.insert(0, ["", f"{left_out:,} earlier events", "in events.jsonl"])
    return rows


def _tone(kind: str) -> str:
    if kind in ("worker_lost", "failed"):
        return "bad"
    if kind in ("tracking_down", "client_dropped", "interrupted"):
        return "warn"
    return "good" if kind in ("worker_replaced", "rank_recovered", "tracking_up", "resumed", "run_finished") else ""


def _details(event: Mapping[str, Any]) -> str:
    parts = []
    for key, value in event.items():
        if key in ("time", "kind") or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            value = value.get("message") or ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        text = str(value).strip().split("\n")[0]
        parts.append(f"{key.replace('_', ' ')}: {text}" if key not in ("message", "reason", "error") else text)
    joined = "; ".join(parts)
    return joined if len(joined) <= _DETAILS else joined[: _DETAILS - 1] + "…"


def environment_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the run ran with as pairs of name and text."""
    pairs = [(name, str(version)) for name, version in (manifest.get("versions") or {}).items()]
    git = manifest.get("git") or {}
    if git.get("commit"):
        pairs.append(("git commit", str(git["commit"]) + (" with changes not committed" if git.get("dirty") else "")))
    machine = manifest.get("machine") or {}
    for name, value in machine.items():
        if name == "memory_bytes":
            pairs.append(("memory", scales.memory(float(value))))
        else:
            pairs.append(("processors" if name == "cpus" else name.replace("_", " "), str(value)))
    command = manifest.get("command")
    if command:
        pairs.append(("command", " ".join(map(str, command)) if isinstance(command, list) else str(command)))
    for name, value in (manifest.get("mlflow") or {}).items():
        if value is not None:
            pairs.append((f"MLflow {name.replace('_', ' ')}", without_password(str(value))))
    return pairs


def without_password(uri: str) -> str:
    """Return a URI without the user and password it may carry."""
    return re.sub(r"//[^/@\s]*@", "//", uri)


def minutes(stamp: Any) -> str:
    """Return an ISO time as `2026-11-21 01:38 UTC`."""
    text = str(stamp or "")
    return f"{text[:10]} {text[11:16]} UTC" if len(text) >= 16 else text or "not recorded"
