"""Byzantine-robust aggregation: rules for vectors of which some may be anything, alone and in chains.

`robust([{"name": "nnm"}], {"name": "trimmed_mean"}).combine(updates, Context(num_byzantine=2))` for a defence as
experiment files write it; every rule is also a function of its own.
"""

from __future__ import annotations

from strategies.robust.arc import arc
from strategies.robust.base import Aggregator, Context, PreAggregator, Screened, finite_rows, screen
from strategies.robust.bucketing import bucketing
from strategies.robust.bulyan import bulyan
from strategies.robust.caf import caf
from strategies.robust.centered_clipping import centered_clipping
from strategies.robust.chain import Combined, Robust, robust
from strategies.robust.clipping import clipping
from strategies.robust.dnc import dnc
from strategies.robust.fltrust import fltrust
from strategies.robust.geometric_median import geometric_median
from strategies.robust.krum import krum, multi_krum
from strategies.robust.mda import mda
from strategies.robust.meamed import meamed
from strategies.robust.mean import mean
from strategies.robust.median import median
from strategies.robust.monna import monna
from strategies.robust.names import AGGREGATORS, PRE_AGGREGATORS, aggregator, pre_aggregator
from strategies.robust.nnm import nearest_neighbor_mixing
from strategies.robust.norm_clipping import norm_clipping
from strategies.robust.sign_majority import sign_majority
from strategies.robust.smea import smea
from strategies.robust.trimmed_mean import trimmed_mean

__all__ = [
    "AGGREGATORS",
    "PRE_AGGREGATORS",
    "Aggregator",
    "Combined",
    "Context",
    "PreAggregator",
    "Robust",
    "Screened",
    "aggregator",
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clipping",
    "clipping",
    "dnc",
    "finite_rows",
    "fltrust",
    "geometric_median",
    "krum",
    "mda",
    "meamed",
    "mean",
    "median",
    "monna",
    "multi_krum",
    "nearest_neighbor_mixing",
    "norm_clipping",
    "pre_aggregator",
    "robust",
    "screen",
    "sign_majority",
    "smea",
    "trimmed_mean",
]
