"""Models of a graph's vertices, one file each: they take features and a view, and return logits of every own vertex."""
