"""GCNII: a deep graph network in which every layer sees the first one's rows and is near to the identity."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional

from trainers.dropout import Dropout
from trainers.graph.layers import Gcnii
from trainers.models.graphs.base import GraphModel, dense, num_features


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    layers: int = 32,
    hidden: int = 64,
    dropout: float = 0.5,
    alpha: float = 0.1,
    theta: float = 0.5,
    dense_decay: float = 0.05,
) -> nn.Module:
    """Return a GCNII: an affine map with ReLU, `layers` convolutions, an affine map.

    Between layers travel two tensors, so a pipeline sends twice as much as for the other models.

    Args:
        hidden: width of every layer but the last.
        dropout: of what goes into each layer, features included.
        alpha: share of the first layer's rows in every layer's input.
        theta: the paper's lambda; layer l multiplies by `(1 - b) I + b W` with `b = log(theta / l + 1)`.
        dense_decay: what the optimizer's weight decay is multiplied by for the two affine maps (`decay_groups`).

    Raises:
        ModelError: when a vertex has no row of features.

    Shapes: features `[n, F]`, logits `[n, num_classes]`.

    Source: Chen, Wei, Huang, Ding, Li 2020, arXiv:2007.02133, section 3; section 5.1 decays the convolutions' weights
    by 0.01 and the affine maps' by 0.0005, hence 0.05. It matters: 16 layers on Cora came to 84.7 and 83.9 % so, to
    80.4 and 76.9 % with 0.0005 for all, and to 13 and 15 % with 0.01 for all (two seeds, after 300 epochs).
    """
    convolutions = (Gcnii(hidden, depth, alpha=alpha, theta=theta, dropout=dropout) for depth in range(1, layers + 1))
    start = Start(num_features("gcnii", input_shape), hidden, dropout)
    return GcniiModel([start, *convolutions, End(hidden, num_classes, dropout)], dense_decay)


class GcniiModel(GraphModel):
    """The layers of `build`, and how weights decay."""

    def __init__(self, layers: Iterable[nn.Module], dense_decay: float) -> None:
        super().__init__(layers)
        self.dense_decay = dense_decay

    def decay_groups(self) -> list[tuple[float, list[str]]]:
        """Return factors of the optimizer's weight decay and the parameters they are for, each parameter once."""
        names = [name for name, _ in self.named_parameters()]
        convolutions = {f"layers.{index}.weight" for index, layer in enumerate(self.layers) if isinstance(layer, Gcnii)}
        return [
            (1.0, [name for name in names if name in convolutions]),
            (self.dense_decay, [name for name in names if name not in convolutions]),
        ]


class Start(nn.Module):
    """Dropout, an affine map and ReLU: the first rows, as x and as what later layers are reminded of."""

    def __init__(self, in_width: int, out_width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = dense(in_width, out_width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        initial = functional.relu(self.linear(self.dropout(x)))
        return initial, initial


class End(nn.Module):
    """Dropout and an affine map to logits."""

    def __init__(self, in_width: int, out_width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = dense(in_width, out_width)

    def forward(self, x: Tensor, initial: Tensor) -> Tensor:
        return self.linear(self.dropout(x))
