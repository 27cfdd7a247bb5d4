"""What a person sees while a run goes on: a live table on a terminal, one line a round elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from orchestrator.config.schema import Experiment

_ROWS = 12
_LINE_EVERY_S = 2.0  # of work before the first step, where there is no terminal


class Progress:
    """Shows steps and messages of one run. Use as a context manager.

    Args:
        num_steps: the last step. quiet: show nothing but messages marked as important.
        unit: what a step is called.
        console: where to; standard error by default, so that standard output stays free for results.
    """

    def __init__(
        self, num_steps: int, *, quiet: bool = False, console: Console | None = None, unit: str = "round"
    ) -> None:
        self._unit = unit
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._num_steps = num_steps
        self._quiet = quiet
        self._rows: deque[tuple[int, Mapping[str, float], float]] = deque(maxlen=_ROWS)
        self._began, self._first = time.monotonic(), 0
        self._live: Live | None = None

    @classmethod
    def of(cls, experiment: Experiment, *, quiet: bool = False) -> Progress:
        """Return the progress of an experiment's run."""
        return cls(experiment.strategy.num_steps, quiet=quiet, unit=experiment.strategy.unit)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, step: int) -> None:
        """Start counting at `step`, the last one done."""
        self._first, self._began = step, time.monotonic()
        if self.console.is_terminal and not self._quiet:
            self._live = Live(self._table(), console=self.console, refresh_per_second=4)
            self._live.start()

    def message(self, text: str, *, important: bool = False) -> None:
        """Show one line above the table."""
        if not self._quiet or important:
            self.console.print(Text(text))

    @contextmanager
    def work(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show long work before the first step, with a bar on a terminal and at most ten lines elsewhere.

        Yields a function to be told how much of `total` is done.
        """
        shown = self.console.is_terminal and not self._quiet
        live = Live(console=self.console, refresh_per_second=4) if shown else None
        parts = 10 if live is None else 200
        began, told, last_s = time.monotonic(), 0, time.monotonic()

        def tell(done: int) -> None:
            nonlocal told, last_s
            now = time.monotonic()
            if self._quiet or done * parts // total == told or (live is None and now - last_s < _LINE_EVERY_S):
                return
            told, last_s = done * parts // total, now
            left = duration((now - began) / max(1, done) * (total - done))
            if live is None:
                self.console.print(Text(f"{what}  {100 * done // total} %  left {left}"))
            else:
                bar = Table.grid(padding=(0, 2))
                bar.add_row(what, ProgressBar(total=total, completed=done, width=40), f"{left} left")
                live.update(bar)

        with live or nullcontext():
            yield tell

    def step(self, step: int, values: Mapping[str, float], virtual_s: float) -> None:
        """Show the figures of one step."""
        self._rows.append((step, values, virtual_s))
        if self._live is not None:
            self._live.update(self._table())
        elif not self._quiet and self._worth_a_line(step, values):
            self.console.print(Text(self._line(step, values, virtual_s)))

    def _worth_a_line(self, step: int, values: Mapping[str, float]) -> bool:
        """Steps that were evaluated, and of the others a hundred at most."""
        evaluated = "test/loss" in values or "clients/accuracy" in values
        return evaluated or step % max(1, self._num_steps // 100) == 0

    def _line(self, step: int, values: Mapping[str, float], virtual_s: float) -> str:
        parts = [f"{self._unit} {step:>{len(str(self._num_steps))}}/{self._num_steps}"]
        parts += [f"{label} {text}" for label, text in self._cells(values, virtual_s) if text]
        if step < self._num_steps:
            parts.append(f"left {self._left(step)}")
        return "  ".join(parts)

    def _left(self, step: int) -> str:
        done = step - self._first
        if done < 1:
            return "?"
        return duration((time.monotonic() - self._began) / done * (self._num_steps - step))

    def _table(self) -> Group:
        step = self._rows[-1][0] if self._rows else self._first
        bar = Table.grid(padding=(0, 2))
        bar.add_column()
        bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(total=max(1, self._num_steps), completed=step, width=40),
            f"{step}/{self._num_steps} {self._unit}s, {self._left(step)} left",
        )
        return Group(self._figures(), bar)

    def _figures(self) -> Table:
        """Return the last rows with as many columns as the terminal is wide enough for, a figure never cut."""
        known = {name: 0.0 for _, values, _ in self._rows for name in values}
        labels = [label for label, _ in self._cells(known, 0.0)]
        wide = self.console.options.update(width=1000)
        for num_columns in range(len(labels), -1, -1):
            table = Table(box=None, padding=(0, 2), header_style="dim")
            for label in (self._unit, *labels[:num_columns]):
                table.add_column(label, justify="right", no_wrap=True)
            for step, values, virtual_s in self._rows:
                table.add_row(str(step), *(text for _, text in self._cells(values, virtual_s)[:num_columns]))
            if self.console.measure(table, options=wide).maximum <= self.console.width:
                break
        return table

    def _cells(self, values: Mapping[str, float], virtual_s: float) -> list[tuple[str, str]]:
        def figure(name: str, style: str) -> str:
            return format(values[name], style) if name in values else ""

        if self._unit == "epoch":
            return [
                ("val", figure("val/accuracy", ".4f")),
                ("test", figure("test/accuracy", ".4f")),
                ("best val", figure("best/val_accuracy", ".4f")),
                ("val loss", figure("val/loss", ".4f")),
                ("train loss", figure("train/loss", ".4f")),
                ("s", figure("time/step_s", ".2f")),
            ]
        serverless = self._unit == "iteration"
        own = "clients/accuracy" in values and "test/accuracy" not in values
        measured = "clients" if own else "test"
        return [
            ("at clients" if own else "accuracy", figure(f"{measured}/accuracy", ".4f")),
            *([("lowest", figure("test/accuracy_lowest", ".4f"))] if serverless else []),
            ("loss", figure(f"{measured}/loss", ".4f")),
            ("train loss", figure("train/loss", ".4f")),
            ("s", figure("time/round_s", ".2f") or figure("time/step_s", ".2f")),
            (
                "sent" if serverless else "up",
                size(values["comm/uplink_bytes"]) if "comm/uplink_bytes" in values else "",
            ),
            ("virtual", duration(virtual_s) if virtual_s else ""),
        ]


def duration(seconds: float) -> str:
    """Return a duration as people write it: `0.8 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """Return a size with a binary unit: `512 B`, `1.9 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
