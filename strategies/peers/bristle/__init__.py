"""Bristle: federated learning among peers, robust by measuring what others send on one's own test samples.

Source: Verbraeken, de Vos, Pouwelse 2021, "Bristle: Decentralized Federated Learning in Byzantine, Non-i.i.d.
Environments" (arXiv:2110.11006). The network's body is trained beforehand and frozen, so all that changes and travels
is an output matrix without bias, `[F, C]`, of which a class is a column. One peer's iteration is `cwr.iteration`, with
`integrator.integrate` merging what arrived; `intersection.Party` finds how many classes two peers share. Bristle+
(`guard`) is ours.
"""

from strategies.peers.bristle.cwr import Peer, iteration
from strategies.peers.bristle.integrator import Integration, Settings, integrate
from strategies.peers.bristle.intersection import IntersectionError, Party
from strategies.peers.bristle.prioritizer import PRIORITIZERS
from strategies.peers.bristle.scoring import Exam, exam

__all__ = [
    "PRIORITIZERS",
    "Exam",
    "Integration",
    "IntersectionError",
    "Party",
    "Peer",
    "Settings",
    "exam",
    "integrate",
    "iteration",
]
