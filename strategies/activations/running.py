"""Ranges that are remembered: a moving mean over steps, so that one batch's outliers do not stretch the grid.

    used by a micro-batch     decay * remembered + (1 - decay) * its own; its own where nothing is remembered
    after a step              decay * remembered + (1 - decay) * mean of its micro-batches' own

With one micro-batch a step this is the paper's rule. With several, all of a step are encoded from what was remembered
before it: their order, and so schedule and recomputation, moves no bit. The authors' code moves one buffer at every
forward and decodes with what it holds at backward, so that all but the last micro-batch are decoded in a range that
they were not encoded in; here each encoded tensor keeps its own.

Processes that each see a part of a step's batches add up what they have seen, and all move by the same mean.

Source: Mesa, arXiv:2111.11124, section 3.1 (exponential moving averages, decay 0.9). Deviation: the step above.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.activations.quantise import Range

DECAY = 0.9


class Running:
    """Remembered ranges, each under the name of its place in the model."""

    def __init__(self) -> None:
        self._known: dict[str, Range] = {}
        self._seen: dict[str, dict[tuple[int, int], Range]] = {}
        self.moved: set[str] = set()
        """Places whose range has moved since it was restored."""

    def use(self, name: str, part: tuple[int, int], own: Range) -> Range:
        """Return the range that a tensor is encoded in, and note its own.

        Args:
            part: which part of the step it belongs to: batch, micro-batch.
        """
        self._seen.setdefault(name, {})[part] = own
        known = self._known.get(name)
        return own if known is None or known.alpha.shape != own.alpha.shape else _mixed(known, own)

    def commit(self) -> None:
        """End a step: move what is remembered by what the step has seen, in the order of its parts."""
        self.moved |= self._seen.keys()
        for name, parts in self._seen.items():
            ranges = [parts[part] for part in sorted(parts)]
            shape = ranges[-1].alpha.shape
            ranges = [one for one in ranges if one.alpha.shape == shape]
            mean = Range(_mean([one.alpha for one in ranges]), _mean([one.beta for one in ranges]))
            known = self._known.get(name)
            self._known[name] = mean if known is None or known.alpha.shape != shape else _mixed(known, mean)
        self._seen.clear()

    def widths(self) -> dict[str, int]:
        """Return the number of groups of what is remembered, by place."""
        return {name: len(known.alpha) for name, known in self._known.items()}

    def seen_widths(self) -> dict[str, int]:
        """Return the number of groups of what the step has seen last, by place."""
        return {name: len(parts[max(parts)].alpha) for name, parts in self._seen.items()}

    def sums(self, widths: Mapping[str, int]) -> Tensor:
        """Return what the step has seen, to be added up over processes that share its batches.

        Args:
            widths: groups by place, the same in all processes; what has another number of them is left out.

        Shapes: for each place of `widths` a count, then sums of alpha and of beta, one after another; float64, on the
            CPU.
        """
        found = []
        for name, width in widths.items():
            ranges = [one for _, one in sorted(self._seen.get(name, {}).items()) if len(one.alpha) == width]
            total = torch.zeros(1 + 2 * width, dtype=torch.float64)
            total[0] = len(ranges)
            for one in ranges:
                total[1:] += torch.cat(one).double().cpu()
            found.append(total)
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def commit_sums(self, widths: Mapping[str, int], sums: Tensor, device: torch.device) -> None:
        """End a step as `commit`, by what all processes have seen: by `sums`, added up."""
        totals = torch.split(sums, [1 + 2 * width for width in widths.values()]) if widths else ()
        for (name, width), total in zip(widths.items(), totals, strict=True):
            if total[0] == 0:
                continue
            alpha, beta = torch.split((total[1:] / total[0]).float().to(device), [width, width])
            known = self._known.get(name)
            fresh = Range(alpha, beta)
            self._known[name] = fresh if known is None or len(known.alpha) != width else _mixed(known, fresh)
            self.moved.add(name)
        self._seen.clear()

    def forget(self) -> None:
        """Forget what an unfinished step has seen."""
        self._seen.clear()

    def export(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is remembered, alpha and beta, by place."""
        alpha = {name: known.alpha for name, known in self._known.items()}
        return alpha, {name: known.beta for name, known in self._known.items()}

    def restore(self, alpha: Mapping[str, Tensor], beta: Mapping[str, Tensor]) -> None:
        """Take what `export` returned, in place of all that is remembered."""
        self._known = {name: Range(width.clone(), beta[name].clone()) for name, width in alpha.items()}
        self._seen.clear()
        self.moved.clear()


def _mixed(known: Range, fresh: Range) -> Range:
    return Range(*(DECAY * old + (1 - DECAY) * new for old, new in zip(known, fresh, strict=True)))


def _mean(tensors: list[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)
