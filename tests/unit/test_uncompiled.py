"""Optimizers are made and stepped without torch's compiler, and do what torch's own do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import torch
from trainers import optimizers

torchs_own = {name: kind.step for name, kind in optimizers.classes().items()}

def moved(name, step=None):
    section = {"name": name, "lr": 0.1}
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
    optimizer = optimizers.build(section, [weight])
    for scale in (1.0, 0.5, 2.0):
        optimizer.zero_grad()
        (weight.pow(3).sum() * scale).backward()
        (step or type(optimizer).step)(optimizer)
    assert torch.is_grad_enabled() and weight.requires_grad and optimizer.state_dict()["state"] is not None
    return weight.detach()

ours = {name: moved(name) for name in torchs_own}
assert len(ours) > 10
assert "torch._dynamo" not in sys.modules
assert torchs_own["sgd"] is not optimizers.classes()["sgd"].step
for name, step in torchs_own.items():
    assert torch.equal(ours[name], moved(name, step)), name
assert "torch._dynamo" in sys.modules, "torch's own steps no longer import it: nothing is spared any more"
"""


def test_every_optimizer_moves_weights_as_torchs_own_does_and_imports_no_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
