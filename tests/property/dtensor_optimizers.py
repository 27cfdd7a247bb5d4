"""What each of two processes does to hold LAMB and LARS on DTensors against the same on whole tensors."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from strategies.optimizers import Lamb, Lars

LAYOUTS = [
    ((5, 4), [Shard(0)]),
    ((6, 3), [Shard(1)]),
    ((4, 4), [Replicate()]),
    ((7,), [Shard(0)]),
    ((1, 3), [Shard(0)]),
]


def main(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    random = torch.Generator().manual_seed(0)
    for kind in (Lamb, Lars):
        whole = [nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64)) for shape, _ in LAYOUTS]
        with torch.no_grad():
            for parameter in whole:  # halves of different scales, so that norms of the halves would be seen
                parameter *= 1 + torch.arange(len(parameter)).view(-1, *[1] * (parameter.dim() - 1))
        cut = [
            nn.Parameter(distribute_tensor(parameter.detach().clone(), mesh, placements))
            for parameter, (_, placements) in zip(whole, LAYOUTS, strict=True)
        ]
        optimizers = [kind(own, lr=0.1, weight_decay=0.1, exclude=None) for own in (whole, cut)]
        for _ in range(3):
            for one, two, (shape, placements) in zip(whole, cut, LAYOUTS, strict=True):
                one.grad = torch.randn(shape, generator=random, dtype=torch.float64)
                two.grad = distribute_tensor(one.grad, mesh, placements)
            optimizers[0].step()
            with CommDebugMode() as counted:
                optimizers[1].step()
            assert counted.get_total_counts() == 1, counted.get_comm_counts()
        for one, two in zip(whole, cut, strict=True):
            torch.testing.assert_close(two.full_tensor(), one, rtol=1e-12, atol=1e-13)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
