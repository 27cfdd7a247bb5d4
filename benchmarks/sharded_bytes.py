"""Bytes that a step of sharded layouts sends: by the formulas of OneFlow's table, and as torch's DTensor does it.

    python benchmarks/sharded_bytes.py

No process is started and nothing is timed: a batch is computed as rank 0 of a process group that moves nothing
(`trainers.sharded.forecast`). Bytes are of all ranks, of one optimizer step of one batch, float32.
"""

from __future__ import annotations

import numpy as np

from trainers import models
from trainers.data.base import Dataset
from trainers.sharded import choosing
from trainers.sharded.choosing import Layout
from trainers.sharded.forecast import forecast
from trainers.sharded.layout import resolve
from trainers.sharded.settings import Settings

MLP = {"name": "mlp", "hidden": [4096, 1024], "dtype": "float32"}
TRANSFORMER = {"name": "transformer", "layers": 4, "heads": 8, "width": 256, "dtype": "float32"}
CUTS = {
    "mlp": {"1.*": "S(0)", "3.weight": "S(1)"},
    "transformer": {
        "*.project.*": "S(0/3)", "*.attention.out.weight": "S(1)", "*.expand.*": "S(0)", "*.contract.weight": "S(1)",
    },
}  # fmt: skip
LAYOUTS = {"data parallel": ((4,), False), "tensor parallel": ((4,), True), "2 x 2": ((2, 2), True)}
COPIES = 4.0  # weights, gradients and AdamW's two


def main() -> None:
    print(f"{'model':<12}{'layout':<18}{'split':<18}{'formula':>14}{'counted':>14}{'apart':>8}  collectives")
    for model, dataset, batch in ((MLP, images(), 64), (TRANSFORMER, text(), 16)):
        built = models.build(model, input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=1)
        names = [name for name, _ in built.named_parameters()]
        for label, (mesh, splits) in LAYOUTS.items():
            entries = {pattern: ["B"] * (len(mesh) - 1) + [entry] for pattern, entry in CUTS[model["name"]].items()}
            placements = resolve(list(entries.items()), names) if splits else {}
            axes = (0,) if len(mesh) > 1 or not splits else ()
            settings = settings_of(model, mesh, placements, axes, batch)
            graph = choosing.graph_of(settings, dataset, built)
            show(label, choosing.given(graph, mesh, placements, axes, COPIES), settings, dataset, built)
        for mesh in ((4,), (2, 2)):
            for layout in choosing.candidates(graph_of(model, mesh, batch, dataset, built), mesh, COPIES, None):
                if layout.name != "data parallel":
                    settings = settings_of(model, mesh, layout.placements, layout.batch_axes, batch)
                    show(f"{layout.name} {' x '.join(map(str, mesh))}", layout, settings, dataset, built)


def graph_of(model, mesh, batch, dataset, built):
    return choosing.graph_of(settings_of(model, mesh, {}, (), batch), dataset, built)


def show(label: str, layout: Layout, settings: Settings, dataset: Dataset, built) -> None:
    found = forecast(settings, dataset, built)
    counted, total = found.sent_bytes(), found.counts + found.step_counts
    told = ", ".join(f"{number} {name}" for name, number in sorted(total.items()))
    split = f"{len(layout.placements)} of {len(found.placements)}"
    apart = counted / layout.sent_bytes - 1
    name = settings.model["name"]
    print(f"{name:<12}{label:<18}{split:<18}{layout.sent_bytes:>14,.0f}{counted:>14,}{apart:>8.2%}  {told}", flush=True)


def settings_of(model, mesh, placements, axes, batch) -> Settings:
    return Settings(
        model=model, seed=1, model_seed=1, mesh=mesh, placements=placements, batch_axes=axes, batch_size=batch,
        accumulate=1, optimizer={"name": "adamw", "lr": 0.001, "kwargs": {}},
        learning_rate={"name": "constant", "warmup_steps": 0, "final": 0.0}, clip_norm=None,
        loss={"target": None, "reduction": "mean"}, precision=None, evaluate_batch=batch, steps=1,
    )  # fmt: skip


def images() -> Dataset:
    rng = np.random.default_rng(1)
    x, y = rng.random((128, 784), dtype=np.float32), rng.integers(8, size=128)
    return Dataset("random", "classification", x, y, x[:8], y[:8], 8, (784,))


def text() -> Dataset:
    rng = np.random.default_rng(1)
    x = rng.integers(64, size=(64, 128))
    return Dataset("random", "language-model", x, x, x[:8], x[:8], 64, (128,))


if __name__ == "__main__":
    main()
