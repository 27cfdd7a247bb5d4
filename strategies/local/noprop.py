"""NoProp-DT: each block learns alone to clean a noisy label, given the input; training passes nothing between blocks.

    q(z_t | y) = N(sqrt(A_t) u_y, (1 - A_t) I)        t = 0 .. T, from noise to label; A_0 = 0;  u_y: y's embedding
    block t      loss (T/2) eta (SNR_t - SNR_{t-1}) |u_hat_t(z_{t-1}, x) - u_y|^2,    z_{t-1} ~ q(. | y)
    head         loss -log p(y | z_T),    z_T ~ q(. | y)
    answer       z_0 ~ N(0, I);  z_t = a_t u_hat_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) noise;  class: head(z_T)

`u_hat_t` is the mean of all classes' embeddings under a softmax of the block: an encoder of the raw input x, beside
an affine map of z, then a hidden layer. `coefficients` gives a, b, c of the posterior q(z_t | z_{t-1}, y).

Source: Li, Teh, Pascanu 2025, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
arXiv:2503.24322, section 2 and its discrete-time algorithm; T = 10, eta = 0.1, AdamW with lr 1e-3 and weight decay
1e-3 (`OPTIMIZER`), batches of 128, cosine schedule.

Derived or decided here, as the sources at hand left it open:
- a, b, c follow from q(z_{t-1} | z_t) = N(sqrt(al) z_t, (1 - al) I) with al = A_{t-1} / A_t, by completing the square;
- A_t = cos^2(pi/2 (1 - t/T + s) / (1 + s)), s = 0.008: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17, read
  backwards and not divided by its value at T, so that A_T < 1 and SNR_T is finite. A_0 = 0, so SNR_0 = 0, the first
  block hears noise alone, and KL(q(z_0|y) || N(0, I)), a term of the paper's loss, is 0;
- SNR_T is some 6000, so the last blocks' losses are large: Adam does not mind, plain SGD needs a rate for each block;
- embeddings are fixed: one-hot, or `dim` random numbers from the seed. Learned ones, and a learned schedule, would be
  shared by all blocks and tie them together;
- every block has its own copy of the model's units before the head as its encoder, equal at first; the model's head is
  left out, and the one here belongs to the last block's module and is trained beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.local.base import Carry, LocalModule, LocalRule, drawing, evaluating
from strategies.local.units import shapes
from strategies.seeds import generator, integer

OPTIMIZER: Mapping[str, object] = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-3}
_OFFSET = 0.008


class Coefficients(NamedTuple):
    """Of one step of the answer: `z_t = a u_hat + b z_{t-1} + sqrt(c) noise`."""

    a: float
    b: float
    c: float


def build(blocks: int = 10, eta: float = 0.1, hidden: int = 256, dim: int | None = None) -> LocalRule:
    """Return the NoProp-DT rule.

    Args:
        blocks: T, which is the number of modules, whatever the number of the model's units.
        eta: weight of the cleaning loss.
        hidden: width of the map of z and of the hidden layer.
        dim: of the embeddings; None is one-hot.

    Raises:
        ValueError: when there are no blocks, or an embedding of no numbers.
    """
    if blocks < 1 or (dim is not None and dim < 1):
        raise ValueError(f"noprop needs at least 1 block and 1 dimension, got {blocks} and {dim}")
    return LocalRule(
        "noprop",
        partial(_modules, num_blocks=blocks, eta=eta, hidden=hidden, dim=dim),
        partial(_start, num_blocks=blocks, dim=dim),
        lambda carry: carry["scores"],
        "none",
    )


def schedule(num_blocks: int) -> np.ndarray:
    """Return `A [T + 1]`: the share of the label in z_t, rising from 0."""
    noise = 1.0 - np.arange(num_blocks + 1) / num_blocks
    share: np.ndarray = np.cos(math.pi / 2 * (noise + _OFFSET) / (1 + _OFFSET)) ** 2
    share[0] = 0.0
    return share


def coefficients(before: float, after: float) -> Coefficients:
    """Return the step's coefficients from A_{t-1} and A_t."""
    kept = before / after
    return Coefficients(
        a=math.sqrt(after) * (1 - kept) / (1 - before),
        b=math.sqrt(kept) * (1 - after) / (1 - before),
        c=(1 - after) * (1 - kept) / (1 - before),
    )


class Block(LocalModule):
    """Block t of T; the last also has the head.

    Args:
        number: t, from 1.
        embeddings: `[C, d]`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_features: int,
        embeddings: Tensor,
        *,
        number: int,
        num_blocks: int,
        eta: float,
        hidden: int,
    ) -> None:
        super().__init__()
        num_classes, dim = embeddings.shape
        self.number, self.eta = number, eta
        self.encoder = encoder
        self.label = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.both = nn.Sequential(nn.Linear(num_features + hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
        self.head = nn.Linear(dim, num_classes) if number == num_blocks else None
        self.embeddings: Tensor
        self.register_buffer("embeddings", embeddings.clone())
        shares = schedule(num_blocks)
        self.before, self.after = float(shares[number - 1]), float(shares[number])
        ratio = [share / (1 - share) for share in (self.before, self.after)]
        self.weight = num_blocks / 2 * eta * (ratio[1] - ratio[0])
        self.step = coefficients(self.before, self.after)
        self._loss: Tensor | None = None

    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        x = carry["x"]
        clean = self.embeddings[targets].to(x.dtype)
        noise = _noise(seed, 2, clean)
        with torch.enable_grad(), drawing(seed, x.device):
            cleaned = self.cleaned(_noisy(clean, self.before, noise[0]), x)
            loss = self.weight * (cleaned - clean).square().sum(dim=1).mean()
            if self.head is not None:
                loss = loss + functional.cross_entropy(self.head(_noisy(clean, self.after, noise[1])), targets)
        self._loss = loss
        return carry

    def learn(self) -> float:
        if self._loss is None:
            raise RuntimeError("learn() has no batch; call forward first")
        loss, self._loss = self._loss, None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def cleaned(self, z: Tensor, x: Tensor) -> Tensor:
        """Return u_hat: the block's guess of the label's embedding."""
        logits = self.both(torch.cat([self.encoder(x).flatten(1), self.label(z)], dim=1))
        return logits.softmax(dim=1) @ self.embeddings.to(logits.dtype)  # type: ignore[no-any-return]

    def infer(self, carry: Carry) -> Carry:
        x, z, noise = carry["x"], carry["z"], carry["noise"]
        a, b, c = self.step
        with evaluating(self):
            z = a * self.cleaned(z, x) + b * z + math.sqrt(c) * noise[:, self.number - 1]
            scores = {"scores": self.head(z)} if self.head is not None else {}
        return {"x": x, "z": z, "noise": noise, **scores}


def _noisy(clean: Tensor, share: float, noise: Tensor) -> Tensor:
    return math.sqrt(share) * clean + math.sqrt(1 - share) * noise


def _noise(seed: int, count: int, like: Tensor) -> Tensor:
    drawn = generator(seed, "noprop noise").standard_normal((count, *like.shape))
    return torch.from_numpy(drawn).to(like)


def _modules(
    units: Sequence[nn.Module],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    seed: int,
    num_blocks: int,
    eta: float,
    hidden: int,
    dim: int | None,
) -> list[LocalModule]:
    if len(units) < 2:
        raise ValueError("noprop needs a unit before the head to encode the input, got the head alone")
    num_features = math.prod(shapes(units[:-1], input_shape)[-1])
    if dim is None:
        embeddings = torch.eye(num_classes)
    else:
        drawn = generator(seed, "noprop embeddings").standard_normal((num_classes, dim))
        embeddings = torch.from_numpy(drawn / math.sqrt(dim)).float()
    encoder = nn.Sequential(*units[:-1])
    modules: list[LocalModule] = []
    for number in range(1, num_blocks + 1):
        with drawing(integer(seed, "noprop block", number)):
            own = encoder if number == 1 else copy.deepcopy(encoder)
            modules.append(
                Block(own, num_features, embeddings, number=number, num_blocks=num_blocks, eta=eta, hidden=hidden)
            )
    return modules


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int, *, num_blocks: int, dim: int | None) -> Carry:
    if y is not None:
        return {"x": x}
    noise = _noise(seed, num_blocks + 1, x.new_empty(len(x), num_classes if dim is None else dim))
    return {"x": x, "z": noise[0], "noise": noise[1:].transpose(0, 1)}
