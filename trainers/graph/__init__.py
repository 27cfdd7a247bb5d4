"""What graph networks are made of: sparse products, what a layer may ask of a graph, and layers."""
