"""Bristle on MNIST features, by its formulas alone: its peers against label flippers, and against foreign-class poison.

Ten honest peers own classes i..i+3 mod 10, two training and ten test samples of each; minibatches of 5; 300 iterations
on a complete graph, as in Verbraeken et al. 2021 (arXiv:2110.11006). The frozen body is the convolutional part of the
paper's network, trained here for a moment on other MNIST images, or on Fashion-MNIST, in place of EMNIST-Letters: what
the features are worth bounds every row. Attackers are linked to everybody. Label flippers own all classes and train
alone on images of class c+1 labelled c. The others know all, and send to every receiver what the owners hold of its
classes, so that it finds them excellent, and on its foreign classes

    swap      the owners' columns, each in the place of the next
    negate    the owners' columns times -1
    creep     the owners' columns turned by 41 degrees towards the next one's
    mute      a column of 30 times their length that points away from the mean example

Printed is the accuracy of honest peers on 1000 test images, mean over iterations 250 to 290, and its deviation over
seeds; a late attack begins at iteration 100.

    python -m benchmarks.bristle_study [--seeds 3] [--body mnist] [--iterations 300]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import output_layer
from strategies.peers.bristle import cwr, integrator, scoring
from strategies.seeds import generator
from trainers.data.base import Dataset, to_tensor
from trainers.data.registry import load

HONEST, OWNED, CLASSES, BATCH = 10, 4, 10, 5


def body() -> nn.Module:
    """Return the convolutional part of the paper's MNIST network: 800 features."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 50, 5), nn.LeakyReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
    )  # fmt: skip


def pretrained(source: Dataset, num_steps: int) -> nn.Module:
    """Return a body trained on another task."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features, head = body(), nn.Linear(800, source.num_classes, bias=False)
    optimizer = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-4)
    rng = generator(0, "pretraining")
    for _ in range(num_steps):
        rows = rng.choice(len(source.train_x), 64, replace=False)
        x = to_tensor(source.train_x[rows], source, torch.float32)
        loss = nn.functional.cross_entropy(head(features(x)), torch.from_numpy(source.train_y[rows]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return features.eval()


@torch.no_grad()
def featured(net: nn.Module, x: np.ndarray, data: Dataset) -> Tensor:
    return torch.cat([net(to_tensor(part, data, torch.float32)) for part in np.array_split(x, 1 + len(x) // 1000)])


class World:
    """Samples of every peer as features, drawn by the seed; attackers own all classes."""

    def __init__(self, pools: list[Tensor], test: tuple[Tensor, Tensor], seed: int, num_attackers: int) -> None:
        self.test, self.num_attackers, self.num = test, num_attackers, HONEST + num_attackers
        self.owned = [[(i + j) % CLASSES for j in range(OWNED)] for i in range(HONEST)]
        self.masks = torch.tensor([[c in own for c in range(CLASSES)] for own in self.owned])
        self.away = -nn.functional.normalize(test[0].mean(0), dim=0)
        self.x, self.y, self.exams = [], [], []
        for peer in range(self.num):
            classes = self.owned[peer] if peer < HONEST else list(range(CLASSES))
            rng = generator(seed, "samples", peer)
            rows = [pools[c][torch.from_numpy(rng.choice(len(pools[c]), 12, replace=False))] for c in classes]
            labels = torch.tensor(classes)
            self.x.append(torch.cat([part[:2] for part in rows]))
            self.y.append(((labels - int(peer >= HONEST)) % CLASSES).repeat_interleave(2))
            if peer < HONEST:
                samples = torch.cat([part[2:] for part in rows])
                self.exams.append(scoring.exam(samples, labels.repeat_interleave(10), classes))

    def shared(self, receiver: int, others: list[int]) -> list[int]:
        """Return the number of classes that the receiver shares with others; attackers claim all of its own."""
        own = set(self.owned[receiver])
        return [len(own & set(self.owned[p])) if p < HONEST else OWNED for p in others]

    def poison(self, kind: str, honest: Tensor, receiver: int) -> Tensor:
        """Return what a knowing attacker sends to a receiver, from the honest matrices `[h, F, C]`."""
        model = torch.einsum("hfc,hc->fc", honest, self.masks / self.masks.sum(0))
        foreign = (~self.masks[receiver]).nonzero().ravel()
        good = model[:, foreign]
        swapped = good.roll(-1, dims=1)
        model[:, foreign] = {
            "swap": swapped,
            "negate": -good,
            "creep": 0.75 * good + 0.66 * swapped,
            "mute": 30 * good.norm(dim=0).mean() * self.away[:, None].expand_as(good),
        }[kind]
        return model


class Method(NamedTuple):
    """How peers merge: by a rule on `[1 + n, F, C]`, or by Bristle with its settings."""

    rule: Callable[[Tensor], Tensor] | None = None
    settings: integrator.Settings = integrator.PAPER
    num_shared: str = "psi"


AVERAGE, MEDIAN = Method(lambda models: models.mean(0)), Method(lambda models: models.quantile(0.5, dim=0))
BRISTLE, THREE = Method(), Method(num_shared="3")
PLUS = Method(settings=integrator.Settings(foreign="agreement"))


def merge(
    method: Method, world: World, me: int, others: list[int], got: Tensor, at: tuple[int, int], own: Tensor
) -> Tensor:
    """Return the own matrix with what was got merged in; `at` is the seed and the iteration."""
    if method.rule:
        return method.rule(torch.cat([own[None], got]))
    counts = 3 if method.num_shared == "3" else world.shared(me, others)
    rng = generator(at[0], "integration", at[1], me)
    return integrator.integrate(own, got, world.exams[me], rng, counts, method.settings, at[1]).model


def run(world: World, method: Method, attack: str, seed: int, iterations: int = 300, start: int = 0) -> list[float]:
    """Return the mean accuracy of honest peers every ten iterations; knowing attackers begin at `start`."""
    flipping = attack == "flip-all"
    zeros = torch.zeros(800, CLASSES)
    peers = [cwr.Peer(zeros, zeros, output_layer.no_moments(zeros)) for _ in range(world.num)]
    owned = [*world.masks] + [torch.ones(CLASSES, dtype=torch.bool)] * world.num_attackers
    curve, orders = [], [np.zeros(0, np.int64)] * world.num
    for step in range(iterations):
        sent = torch.stack([peer.cw for peer in peers])
        for p in range(world.num if flipping else HONEST):
            if not len(orders[p]):
                orders[p] = generator(seed, "order", step, p).permutation(len(world.y[p]))
            rows, orders[p] = torch.from_numpy(orders[p][:BATCH]), orders[p][BATCH:]
            train = partial(output_layer.train_step, features=world.x[p][rows], labels=world.y[p][rows])
            integrate = None
            if p < HONEST and step:
                others = [q for q in range(world.num if flipping or step >= start else HONEST) if q != p]
                got = sent[others]
                if not flipping and step >= start:
                    got[HONEST - 1 :] = world.poison(attack, sent[:HONEST], p)
                integrate = partial(merge, method, world, p, others, got, (seed, step))
            if method.rule:
                matrix, moments = train(integrate(peers[p].cw) if integrate else peers[p].cw, peers[p].moments)
                peers[p] = cwr.Peer(matrix, matrix, moments)
            else:
                peers[p] = cwr.iteration(peers[p], owned[p], train, integrate)
        if step % 10 == 0:
            x, y = world.test
            logits = torch.einsum("mf,hfc->hmc", x, torch.stack([peer.cw for peer in peers[:HONEST]]))
            curve.append((logits.argmax(-1) == y).float().mean().item())
    return curve


def features(which: str) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Return the features of MNIST training images by class, and of test images with their labels."""
    mnist = load({"name": "mnist"}, seed=0)
    source = load({"name": which}, seed=0)
    source = source._replace(train_x=source.train_x[20000:], train_y=source.train_y[20000:])
    net = pretrained(source, 600)
    x, y = featured(net, mnist.train_x[:20000], mnist), torch.from_numpy(mnist.train_y[:20000])
    test = featured(net, mnist.test_x[:1000], mnist), torch.from_numpy(mnist.test_y[:1000]).long()
    return [x[y == c] for c in range(CLASSES)], test


NAMES = {"average": AVERAGE, "median": MEDIAN, "Bristle": BRISTLE, "Bristle, n_p 3": THREE}
GUARDED = {"Bristle": BRISTLE, "Bristle+": PLUS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--body", choices=("mnist", "fashion-mnist"), default="mnist", help="what it is trained on")
    parser.add_argument("--iterations", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pools, test = features(arguments.body)

    def table(methods: dict[str, Method], rows: list[tuple[str, int, int]]) -> None:
        print(f"\n| attack | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
        for attack, num, start in rows:
            cells = []
            for method in methods.values():
                ends = []
                for seed in range(arguments.seeds):
                    curve = run(World(pools, test, seed, num), method, attack, seed, arguments.iterations, start)
                    ends.append(np.mean(curve[-5:]))
                cells.append(f"{np.mean(ends):.3f} ±{np.std(ends):.3f}")
            print(f"| {num} {attack}{', late' * bool(start)} | {' | '.join(cells)} |", flush=True)

    late = arguments.iterations // 3
    table(NAMES, [("flip-all", num, 0) for num in (0, 5, 10, 24)])
    knowing = [(kind, num, 0) for kind in ("swap", "mute") for num in (1, 3, 5)]
    table(
        GUARDED,
        [("flip-all", 0, 0), *knowing, ("negate", 5, 0), ("creep", 3, 0), ("swap", 5, late), ("swap", 24, late)],
    )


if __name__ == "__main__":
    main()
