"""ForwardGNN, single-forward: graph layers that tell classes apart by virtual vertices, one for each class.

    graph     a vertex for each class, with fixed random features, joined both ways to the training vertices of it
    layer     H = unit(P r(sg X)),  r: rows divided by their length,  P = D^-1/2 (A + I) D^-1/2 of the graph so made
    loss      cross-entropy of H_train H_virtual^T / tau
    answer    argmax of the layers' softmaxes, summed

Vertices for validation and test have no edge to a class: nothing of their labels enters.

Source: Park et al., "Forward Learning of Graph Neural Networks", ICLR 2024, its single-forward method for vertex
classification, and r and the normalisations as the published program describes them; written anew from that account,
with no code of it. Width 128, tau = 1, Adam with lr 1e-3 and weight decay 5e-4 (`OPTIMIZER`), at most 1000 epochs a
layer, validated every 2, stopped after 100 validations without a better one.

Unlike the other rules this one learns from a whole graph at once and, as published, layer by layer to the end: `fit` is
its program. Its modules are nevertheless modules like others: `serial.train_batch`, on all vertices, steps all
layers together.

    rule = build(src, dst, labels, train)             # train: bool [N]
    modules = rule.modules(units, num_classes=7, input_shape=(1433,), seed=7)    # units: Linear and ReLU, row by row
    fit(modules, optimizers, rule, x, labels, validation, num_classes=7)

Decided here, as the account left it open: class features are standard normal; a layer is validated by its own
softmax; at the end it gets back the weights of its best validation. P r(X) is computed once for a layer, whose input
does not change. Left out: other convolutions than GCN's, the forward-forward variants, top-to-loss and top-to-input
signals, link prediction. The model's head has no part in it.

On Cora with two layers of 128, beside a GCN of these layers and a head by backpropagation, for two seeds: 88.2 % and
88.0 % against 87.3 % and 87.3 % on splits of 64/16/20 (at most 300 epochs), but 76.5 % and 77.8 % against 80.2 % and
78.4 % on the public split with its 20 labels a class (at most 150).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from strategies.local.base import Carry, LocalModule, LocalRule, drawing, evaluating
from strategies.local.serial import learn
from strategies.local.units import weight_of
from strategies.seeds import generator, integer

OPTIMIZER: Mapping[str, object] = {"name": "adam", "lr": 1e-3, "weight_decay": 5e-4}


def build(
    src: np.ndarray, dst: np.ndarray, labels: np.ndarray, train: np.ndarray, temperature: float = 1.0
) -> LocalRule:
    """Return the rule for one graph.

    Args:
        src, dst: `[E]`, an edge from each src to its dst; both directions of undirected ones.
        labels, train: `[N]`, classes and which vertices are for training; other vertices' labels are not read.
        temperature: tau.
    """
    modules = partial(_modules, src=src, dst=dst, labels=labels, train=train, temperature=temperature)
    return LocalRule("forward-gnn", modules, _start, lambda carry: carry["scores"])


def with_class_vertices(
    src: np.ndarray, dst: np.ndarray, labels: np.ndarray, train: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges and, both ways, those between each training vertex and its class's vertex, `N + class`."""
    members = np.flatnonzero(train)
    classes = len(labels) + labels[members]
    if len(members) and not 0 <= labels[members].min() <= labels[members].max() < num_classes:
        raise ValueError(f"labels of training vertices must be from 0 to {num_classes - 1}")
    return np.concatenate([src, members, classes]), np.concatenate([dst, classes, members])


def propagation(src: np.ndarray, dst: np.ndarray, num_vertices: int) -> Tensor:
    """Return D^-1/2 (A + I) D^-1/2 as a sparse matrix `[n, n]`, row by target; D counts edges in, and itself.

    Doubled edges and self-loops count once. Source: Kipf and Welling 2017, arXiv:1609.02907, equation 2.
    """
    own = np.arange(num_vertices)
    pairs = np.unique(np.concatenate([dst * num_vertices + src, own * num_vertices + own]))
    rows, columns = pairs // num_vertices, pairs % num_vertices
    scale = 1 / np.sqrt(np.bincount(rows, minlength=num_vertices))
    places = torch.from_numpy(np.stack([rows, columns]))
    values = torch.from_numpy(scale[rows] * scale[columns])
    size = (num_vertices, num_vertices)
    return torch.sparse_coo_tensor(places, values, size, check_invariants=True).coalesce()


class SingleForward(LocalModule):
    """One graph layer.

    Args:
        unit: applied row by row to what came over the edges.
        matrix: sparse `[N + C, N + C]`. train: rows for training. virtual: `[C, F]` class features, where it is first.
    """

    def __init__(
        self,
        unit: nn.Module,
        matrix: Tensor,
        train: Tensor,
        num_classes: int,
        temperature: float,
        virtual: Tensor | None,
    ) -> None:
        super().__init__()
        self.unit, self.num_classes, self.temperature = unit, num_classes, temperature
        self.matrix: Tensor
        self.train_rows: Tensor
        self.virtual: Tensor | None
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("train_rows", train, persistent=False)
        self.register_buffer("virtual", virtual)
        self._loss: Tensor | None = None

    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        return {"h": self.run(self.gathered(carry), targets, seed)}

    def learn(self) -> float:
        if self._loss is None:
            raise RuntimeError("learn() has no batch; call forward first")
        loss, self._loss = self._loss, None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def infer(self, carry: Carry) -> Carry:
        h, scores = self.answer(self.gathered(carry))
        return {"h": h, "scores": carry["scores"] + scores if "scores" in carry else scores}

    def gathered(self, carry: Carry) -> Tensor:
        """Return P r(X), class vertices last."""
        x = carry["h"]
        if self.virtual is not None:
            x = torch.cat([x, self.virtual.to(x.dtype)])
        with torch.no_grad():
            return self.matrix.to(x.dtype) @ functional.normalize(x, dim=1)

    def run(self, gathered: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Return the layer's output, detached, from P r(X); keep the loss, in which training rows alone have a part."""
        with torch.enable_grad(), drawing(seed, targets.device):
            h = self.unit(gathered)
            self._loss = functional.cross_entropy(self._logits(h)[self.train_rows], targets[self.train_rows])
        return h.detach()  # type: ignore[no-any-return]

    def answer(self, gathered: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's output `[N + C, H]` and its softmax `[N, C]`."""
        with evaluating(self):
            h = self.unit(gathered)
            return h, self._logits(h).softmax(dim=1)

    def _logits(self, h: Tensor) -> Tensor:
        return h[: -self.num_classes] @ h[-self.num_classes :].T / self.temperature


class Fitted(NamedTuple):
    """What became of one layer.

    Args:
        accuracy: its best on the validation vertices, by its own softmax. epoch: when, from 1. num_epochs: trained.
    """

    accuracy: float
    epoch: int
    num_epochs: int


def fit(
    modules: Sequence[LocalModule],
    optimizers: Sequence[Optimizer],
    rule: LocalRule,
    x: Tensor,
    labels: Tensor,
    validation: Tensor,
    *,
    num_classes: int,
    max_epochs: int = 1000,
    every: int = 2,
    patience: int = 100,
    seed: int = 0,
) -> list[Fitted]:
    """Train layer by layer, each to its early stop, on what the finished ones before it give; return how each did.

    Args:
        optimizers: one a layer. x: `[N, F]`. labels: `[N]`. validation: bool `[N]`.
        every: epochs between validations. patience: validations without a better one, after which a layer stops.
    """
    carry = rule.start(x, labels, num_classes, seed)
    told = []
    for index, (layer, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
        assert isinstance(layer, SingleForward), f"{type(layer).__name__} is no layer of this rule"
        gathered = layer.gathered(carry)
        best, weights, epoch = Fitted(-1.0, 0, 0), copy.deepcopy(layer.unit.state_dict()), 0
        while epoch < max_epochs and epoch - best.epoch < every * patience:
            epoch += 1
            layer.run(gathered, labels, integer(seed, "forward-gnn epoch", index, epoch))
            learn(layer, optimizer)
            if epoch % every == 0 or epoch == max_epochs:
                answers = layer.answer(gathered)[1][validation].argmax(dim=1)
                accuracy = (answers == labels[validation]).float().mean().item()
                if accuracy > best.accuracy:
                    best, weights = Fitted(accuracy, epoch, epoch), copy.deepcopy(layer.unit.state_dict())
        layer.unit.load_state_dict(weights)
        told.append(best._replace(num_epochs=epoch))
        carry = {"h": layer.answer(gathered)[0]}
    return told


def _modules(
    units: Sequence[nn.Module],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    seed: int,
    src: np.ndarray,
    dst: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    temperature: float,
) -> list[LocalModule]:
    if len(units) < 2:
        raise ValueError("forward-gnn needs a unit before the head, got the head alone")
    num_vertices = len(labels) + num_classes
    joined = with_class_vertices(src, dst, labels, train, num_classes)
    matrix = propagation(*joined, num_vertices).to(weight_of(units).dtype)
    rows = torch.from_numpy(np.flatnonzero(train))
    drawn = generator(seed, "forward-gnn classes").standard_normal((num_classes, *input_shape))
    virtual = torch.from_numpy(drawn).float()
    return [
        SingleForward(unit, matrix, rows, num_classes, temperature, virtual if index == 0 else None)
        for index, unit in enumerate(units[:-1])
    ]


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int) -> Carry:
    return {"h": x}
