"""ZeRO: what data-parallel ranks hold when they share out optimizer states, gradients and weights."""
