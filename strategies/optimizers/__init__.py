"""Optimizers that torch does not have, by their names in experiment files, and what may be done to gradients."""

from strategies.optimizers.lamb import Lamb
from strategies.optimizers.lars import Lars
from strategies.optimizers.pieces import Piece

OPTIMIZERS = {"lamb": Lamb, "lars": Lars}

__all__ = ["OPTIMIZERS", "Lamb", "Lars", "Piece"]
