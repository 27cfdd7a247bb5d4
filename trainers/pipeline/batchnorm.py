"""BatchNorm in a pipeline: micro-batches are normalised by their own statistics, the running ones see the whole batch.

    training      each micro-batch is normalised with its own mean and variance
    running_*     moved once a batch, by the statistics of all its micro-batches together, as one full batch would
    recomputing   normalises again in the same way and moves nothing

Statistics are combined by counts, so that fewer or uneven micro-batches are right as well, and in the order of the
micro-batches, so that the schedule does not change the bits. Replicas' batches count as one.

Source: Huang et al. 2019, arXiv:1811.06965, section 2.2. torchgpipe's deferred BatchNorm keeps sums of squares and the
biased variance; here deviations from the mean are kept, and torch's own rule of the unbiased variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class Deferred:
    """One BatchNorm layer's `forward`, and the statistics of the batch so far."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer = layer
        self.microbatch: int | None = None
        """The micro-batch whose statistics are to be kept; None while recomputing or trying out."""
        self._seen: dict[int, tuple[float, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.training or layer.running_mean is None:
            return type(layer).forward(layer, x)
        if self.microbatch is not None:
            with torch.no_grad():
                dims = [dim for dim in range(x.dim()) if dim != 1]
                variance, mean = torch.var_mean(x.detach(), dims, correction=0)
                count = x.numel() / x.shape[1]
                self._seen[self.microbatch] = (count, mean.double(), variance.double() * count)
        return functional.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)

    def statistics(self) -> Tensor:
        """Return the batch's `[count, sum, sum of squared deviations from a channel's mean]` so far.

        Shapes: result `[1 + 2 C]`, float64.
        """
        features = self.layer.num_features
        total = torch.zeros(1 + 2 * features, dtype=torch.float64, device=self.layer.running_mean.device)
        for microbatch in sorted(self._seen):
            count, mean, squares = self._seen[microbatch]
            total = combine([total, torch.cat([total.new_tensor([count]), mean * count, squares])])
        self._seen.clear()
        return total

    @torch.no_grad()
    def commit(self, total: Tensor) -> None:
        """Move the running statistics by those of the whole batch."""
        layer, features = self.layer, self.layer.num_features
        count = float(total[0])
        if count == 0:
            return
        mean = total[1 : 1 + features] / count
        variance = total[1 + features :] / max(count - 1, 1.0)
        layer.num_batches_tracked += 1
        rate = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        for running, fresh in ((layer.running_mean, mean), (layer.running_var, variance)):
            running.copy_(((1 - rate) * running.double() + rate * fresh).to(running.dtype))


def combine(parts: Sequence[Tensor]) -> Tensor:
    """Merge the statistics of disjoint parts of a batch, in the order given.

    Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.
    """
    merged = parts[0]
    features = (len(merged) - 1) // 2
    for part in parts[1:]:
        n, m = merged[0], part[0]
        if float(m) == 0:
            continue
        if float(n) == 0:
            merged = part
            continue
        shift = part[1 : 1 + features] / m - merged[1 : 1 + features] / n
        squares = merged[1 + features :] + part[1 + features :] + shift.square() * (n * m / (n + m))
        merged = torch.cat([merged[: 1 + features] + part[: 1 + features], squares])
    return merged


def install(module: nn.Module) -> list[Deferred]:
    """Make the BatchNorm layers below `module` follow the rules above; return them in the module's order."""
    found = []
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.forward = Deferred(layer)
            found.append(layer.forward)
    return found
