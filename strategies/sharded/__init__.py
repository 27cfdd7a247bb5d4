"""Sharded layouts: which part of each tensor a rank holds, what an operator makes of that, and what it costs to change.

The idea, the signatures and the table of costs are those of OneFlow (Yuan et al. 2021, arXiv:2110.15032, section 3.1).
Everything here is arithmetic on shapes: `trainers.sharded` runs it, on torch's DTensor.

Left out: OneFlow's actor runtime. A credit count has nothing to pace here, as ranks compute in lock step and no copy is
an operator of its own.
"""

from strategies.sharded.boxing import collective, gloo_bytes, mesh_bytes, table_bytes
from strategies.sharded.graph import Graph, Operator, shard
from strategies.sharded.meshes import MeshAssignment, plan_mesh
from strategies.sharded.placements import BROADCAST, PARTIAL, Broadcast, Partial, Placement, Split, parse, show
from strategies.sharded.planning import Assignment, TooLarge, exact, greedy, price
from strategies.sharded.signatures import KINDS, Signature, is_even, signatures

__all__ = [
    "BROADCAST",
    "KINDS",
    "PARTIAL",
    "Assignment",
    "Broadcast",
    "Graph",
    "MeshAssignment",
    "Operator",
    "Partial",
    "Placement",
    "Signature",
    "Split",
    "TooLarge",
    "collective",
    "exact",
    "gloo_bytes",
    "greedy",
    "is_even",
    "mesh_bytes",
    "parse",
    "plan_mesh",
    "price",
    "shard",
    "show",
    "signatures",
    "table_bytes",
]
