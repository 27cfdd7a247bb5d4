"""Progress is one line a round in a log and a live table on a terminal; durations and sizes read as people write."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.progress import Progress, duration, size

VALUES = {"test/accuracy": 0.5, "train/loss": 1.25, "time/round_s": 0.5, "comm/uplink_bytes": 2048.0}


def shown(*, terminal: bool, quiet: bool = False, width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, soft_wrap=not terminal, highlight=False)
    with Progress(3, quiet=quiet, console=console) as progress:
        progress.message("hello [bold]")
        progress.message("must know", important=True)
        progress.begin(0)
        for step in (1, 2, 3):
            progress.step(step, VALUES, 61.0 * step)
    return stream.getvalue()


def test_a_log_has_one_line_a_round() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[:2] == ["hello [bold]", "must know"]
    assert len(lines) == 5
    assert lines[2].startswith("round 1/3  accuracy 0.5000  train loss 1.2500  s 0.50  up 2.0 KiB  virtual 1 min 01 s")
    assert "left" in lines[3] and "left" not in lines[4]


@pytest.mark.parametrize("width", [40, 100])
def test_a_terminal_has_a_table_that_is_drawn_over(width: int) -> None:
    text = shown(terminal=True, width=width)
    assert "3/3 rounds" in text or width == 40
    assert "\x1b[" in text
    assert "hello [bold]" in text


def test_quiet_shows_only_what_one_must_know() -> None:
    assert shown(terminal=False, quiet=True) == "must know\n"
    assert shown(terminal=True, quiet=True).strip() == "must know"


def test_the_time_left_counts_the_steps_of_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator import progress as module

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(20, console=Console(file=stream, soft_wrap=True))
    progress.begin(10)  # resumed after ten rounds
    now[0] += 8
    progress.step(14, {}, 0.0)
    assert "left 12 s" in stream.getvalue()


@pytest.mark.parametrize(
    "seconds, text", [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "60 s"), (125, "2 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("num_bytes, text", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB")])
def test_sizes(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text
