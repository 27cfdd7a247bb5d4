"""Activations kept for backward in 8 bits: how a tensor is cut into groups, rounded, and what ranges are remembered.

Source: Pan, Chen, He, Liu, Cai, Zhuang 2021, "Mesa: A Memory-saving Training Framework for Transformers",
arXiv:2111.11124. Forward passes stay exact; only what backward reads is rounded. `trainers.activations` puts this
between a model and autograd.
"""

from strategies.activations.bits import from_bits, to_bits
from strategies.activations.groups import Groups, groups_of
from strategies.activations.quantise import LEVELS, Encoded, Range, decode, encode, own_range
from strategies.activations.running import DECAY, Running

__all__ = [
    "DECAY", "LEVELS", "Encoded", "Groups", "Range", "Running", "decode", "encode", "from_bits", "groups_of",
    "own_range", "to_bits",
]  # fmt: skip
