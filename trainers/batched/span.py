"""A dense first layer that is trained without its weights: by coefficients of the client's own examples.

Every gradient of a layer that sees the raw examples is a sum of products of an example with something, so what any
number of steps of SGD change is `A^T X` with X the client's n examples and one row of A an example. Written so, a step
needs the products of the examples with each other and with the received weights, which are computed once, for all
clients together; the weights themselves, `in x out` numbers a client, are neither copied nor read nor written.

    layer(x_i) = W0 x_i + A^T (X x_i)          a step: A[batch] -= lr * dL/dlayer(x_batch)

Momentum, weight decay, Nesterov's step and the pull towards the start are linear in the weights, so the optimizer
does to A what it would do to the weights; decay also shrinks the part of W0, which one number a client keeps.

Source: the dual form of a linear model trained by gradient descent (Aizerman, Braverman, Rozonoer 1964); the same
identity, one step long, is used for per-example gradient norms (Goodfellow 2015, arXiv:1510.01799, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.batched.stacked import Product


class Span:
    """The first layer's weights of a group of clients.

    Args:
        examples: each client's, padded with copies of its first one. start: the received weights.
        decays: whether the optimizer shrinks weights, and so the part of `start`.

    Shapes: `examples [C, n, in]`, `start [out, in]` or `[C, out, in]`.
    """

    def __init__(self, examples: Tensor, start: Tensor, decays: bool) -> None:
        clients, size, _ = examples.shape
        self._examples, self._start = examples, start
        self._base = torch.matmul(examples, start.transpose(-1, -2)).flatten(0, 1)
        self._gram = torch.bmm(examples, examples.transpose(1, 2)).flatten(0, 1)
        self.left = examples.new_zeros(clients, size, start.shape[-2])
        self.scale = examples.new_ones(clients) if decays else None
        self._touched = False

    def parameters(self) -> list[Tensor]:
        """Return what an optimizer steps, one row a client."""
        return [self.left] if self.scale is None else [self.left, self.scale]

    def forward(self, places: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's outputs `[c, B, out]` for the first c clients.

        Args:
            places: rows of `examples.flatten(0, 1)`, `[c, B]`.
        """
        active, width = places.shape
        flat = places.flatten()
        outputs = self._base.index_select(0, flat).view(active, width, -1)
        if self.scale is not None:
            outputs *= self.scale[:active, None, None]
        if self._touched:
            self._rows = self._gram.index_select(0, flat).view(active, width, -1)
            outputs.baddbmm_(self._rows, self.left[:active])
        if bias is not None:
            outputs += bias.unsqueeze(1)
        return outputs

    def descend(self, places: Tensor, rows: Tensor, lr: float) -> None:
        """Make a step of plain SGD; `rows` are the gradients of the outputs `[c, B, out]`."""
        self._touched = True
        self.left.flatten(0, 1).index_add_(0, places.flatten(), rows.flatten(0, 1), alpha=-lr)

    def gradients(self, places: Tensor, rows: Tensor, proximal: Tensor | None) -> list[Tensor]:
        """Return the gradients of `parameters()` for the first clients; `proximal` pulls towards the start."""
        self._touched = True
        active = len(places)
        gradient = torch.zeros_like(self.left[:active])
        gradient.flatten(0, 1).index_add_(0, places.flatten(), rows.flatten(0, 1))
        if proximal is not None:
            gradient += proximal[:active, None, None].to(gradient) * self.left[:active]
        if self.scale is None:
            return [gradient]
        scale = self.scale[:active]
        away = torch.zeros_like(scale) if proximal is None else proximal[:active].to(scale) * (scale - 1)
        return [gradient, away]

    def squared_norms(self, places: Tensor, rows: Tensor) -> Tensor:
        """Return the squared norm of each client's gradient of the weights, `[c]`, from products of examples."""
        active, width = places.shape
        size = self._gram.shape[1]
        products = self._gram.index_select(0, places.flatten()).view(active, width, size)
        own = (places % size).unsqueeze(1).expand(active, width, width)
        return (rows * torch.bmm(products.gather(2, own), rows)).sum(dim=(1, 2)).clamp(min=0.0)

    def change(self) -> Product:
        """Return what became of the weights, less what they were."""
        scale = None if self.scale is None else self.scale - 1
        clients, size, _ = self._examples.shape
        squares = self._gram.view(clients, size, size).diagonal(dim1=1, dim2=2)
        return Product(self.left, self._examples, scale, self._start, squares.sum(dim=1).sqrt())


def pays(size: int, rows: int, steps: int, inputs: int, outputs: int) -> bool:
    """Whether a client is cheaper to train by its coefficients than by its weights.

    Args:
        size: its examples. rows: examples seen in all its steps. steps: how many they are.

    Measured on one core of an EPYC 7763: about 80 G multiply-adds a second in large products, against 2.5 G numbers
    a second read or written; a step of the stacked weights moves each of them three times, copying them twice.
    """
    by_span = size * size * inputs + rows * size * outputs + 2 * size * inputs * outputs
    by_weights = 2 * rows * inputs * outputs + 32 * (3 * steps + 2) * inputs * outputs
    return by_span < by_weights
