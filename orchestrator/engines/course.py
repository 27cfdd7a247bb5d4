"""What a strategy adds to the gang engine: a `Course`, which says what ranks run, between processes or in this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from cluster.gang import Gang
from trainers.loop import Spans
from trainers.pipeline.state import Trees


class Inline(Protocol):
    """All ranks in this process."""

    def step(self, number: int) -> Mapping[str, float]:
        """Train step `number`, from 1; figures by metric name."""
        ...

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Measure the model after step `number`; figures by metric name."""
        ...

    @property
    def ends(self) -> bool:
        """Whether what was measured ends the training."""
        ...

    def export(self) -> Trees:
        """Return a copy of the whole state."""
        ...

    def restore(self, trees: Trees) -> None:
        """Take a whole state."""
        ...

    def spans_since(self, began_s: float) -> Sequence[Spans]:
        """Return what each rank that is drawn did in the last step, in seconds since `began_s`."""
        ...


class Course(Protocol):
    """What a strategy's gang trains, and how.

    Attributes:
        program: what every rank calls. place: what messages call the gang.
        num_measuring, num_drawn, num_savers: ranks that report what evaluations found, a time line, and a part of the
            state.
        writes: whether ranks write what they hold of a state to storage, and read it there.
    """

    program: str
    place: str
    num_measuring: int
    num_drawn: int
    num_savers: int
    writes: bool

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """Share what ranks need, once, and return the program's arguments besides `start`, `begin` and how often."""
        ...

    def inline(self, device: torch.device) -> Inline:
        """Return all ranks, in this process."""
        ...

    def summary(self) -> dict[str, Any]:
        """Return who does what, ready for JSON."""
        ...
