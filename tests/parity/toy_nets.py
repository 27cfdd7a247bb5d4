"""Models that are no lists of layers, for the traced split; each takes `[n, 7]` and returns 3 logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 6


class Block(nn.Module):
    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.activation = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.activation(self.first(x)))
        if self.in_place:
            y += x
            return self.activation(y)
        return torch.tanh(x + y)


class Net(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(features, WIDTH), nn.Linear(WIDTH, classes)


class Residual(Net):
    def __init__(self, features: int, classes: int, in_place: bool = False) -> None:
        super().__init__(features, classes)
        self.blocks = nn.ModuleList(Block(in_place=in_place) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ResidualInPlace(Residual):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, in_place=True)


class Branches(Net):
    """Three ways in parallel, of which one is longer; no place between stem and head has one tensor alive."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        gate = torch.sigmoid(self.a(x))
        return self.head(self.d(torch.tanh(self.c(x))) * gate + self.b(x))


class Dense(nn.Module):
    """The input is read again at the very end, so that two tensors are alive everywhere, or more."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.down, self.deep, self.up = (nn.Linear(features, features) for _ in range(3))
        self.head = nn.Linear(2 * features, classes)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x).sin()
        deep = self.deep(down).tanh()
        return self.head(torch.cat([self.up(deep + down).sin(), x], dim=1))


class Reused(Net):
    """One layer in three places, and a weight that is used as it is too."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.shared, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.shared(self.stem(x)))
        x = self.relu(self.shared(self.relu(self.shared(x)) + x))
        x = torch.tanh(self.other(x))
        return self.head(functional.linear(x, self.other.weight.t()))


class Norms(Net):
    def __init__(self, features: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(features, classes)
        self.norm, self.middle, self.again = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
        self.dropout, self.rate = nn.Dropout(dropout), dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.norm(self.stem(x))))
        x = functional.dropout(x + self.again(self.middle(x)), self.rate, self.training)
        return self.head(x)


class Functional(nn.Module):
    """No submodules at all; sizes, tuples, constants and a change by index between its operations."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(2 * WIDTH, features) / 3)
        self.second, self.third = (nn.Parameter(torch.randn(WIDTH, WIDTH) / 3) for _ in range(2))
        self.last = nn.Parameter(torch.randn(classes, WIDTH) / 3)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, WIDTH))
        self.shift = torch.tensor(0.25, dtype=torch.float64)  # no buffer: no checkpoint has it

    def forward(self, x: Tensor) -> Tensor:
        left, right = functional.linear(x, self.first).view(x.size(0), 2, WIDTH).unbind(1)
        x = functional.linear(left * torch.sigmoid(right), self.second) * self.scale
        x[:, 0] = x[:, 1] + self.shift
        x = functional.linear(x * self.scale, self.third) + torch.arange(x.shape[1]) / 10 + torch.ones(WIDTH)
        return functional.linear(torch.tanh(x), self.last).reshape(x.shape[0], -1)


class Chooses(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.sum() > 0:
            x = -x
        return self.head(x)


class Iterates(Net):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.inner = nn.ModuleDict({"deep": Each()})

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner["deep"](self.stem(x)))


class Each(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x])


class Modal(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            x = x + torch.rand_like(x)
        return self.head(x)


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) + torch.randn(WIDTH))


class Counts(Net):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.shape[0])
        return self.head(self.stem(x))


class OwnNorm(Net):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("var", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.batch_norm(self.stem(x), self.mean, self.var, training=self.training))


class InputChanged(Net):
    def forward(self, x: Tensor) -> Tensor:
        x -= 1
        return self.head(self.stem(x))


class Turns(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x.t_()
        return self.head(x.t())


class Collects(Net):
    def forward(self, x: Tensor) -> Tensor:
        collected = torch.zeros(13, WIDTH)
        collected[:, 0] = self.stem(x)[:, 0]
        return self.head(collected)


class Remembers(Net):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.stem(x) * self.calls)


class NormTwice(Net):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.norm(self.stem(x)).relu()))


class Unused(Net):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.forgotten = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class Dictionary(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.stem(x))}


class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.stem(x) + y)


def build(input_shape: tuple[int, ...], num_classes: int, *, net: str, **kwargs: float) -> nn.Module:
    """Return a net by the name of its class."""
    return globals()[net](input_shape[0], num_classes, **kwargs)  # type: ignore[no-any-return]


class Program(Net):
    """Runs `[(operation, i, j), ...]` on a list of values, where i and j count from the end; sums them up at last."""

    def __init__(self, features: int, classes: int, program: list[list[int]]) -> None:
        super().__init__(features, classes)
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        values = [torch.tanh(self.stem(x))]
        for operation, i, j in self.program:
            a, b = values[-1 - i % len(values)], values[-1 - j % len(values)]
            if operation < 4:
                values.append(self.linears[operation](a))
            elif operation == 4:
                values.append(functional.gelu(a) * self.scale)
            elif operation == 5:
                values.append(a + torch.sin(b))
            elif operation == 6:
                a += b * 0.5
            elif operation == 7:
                a[:, :2] = b[:, 2:4]
            elif operation == 8:
                left, right = a.chunk(2, dim=1)
                values.append(torch.cat([right, left * b.shape[1]], dim=1))
            elif operation == 9:
                values.append(torch.relu_(a * 1.5).view(b.shape))
            else:
                values.append(a.view(-1, WIDTH))
        unused = sum(linear.weight.sum() for linear in self.linears) + self.scale.sum()
        unused = unused + sum(linear.bias.sum() for linear in self.linears)
        return self.head(torch.tanh(values[-1] + values[-(len(values) // 2 + 1)])) + unused
