"""Training with every tensor laid out over a mesh of ranks, by torch's DTensor; see `strategies.sharded`."""
