"""K-means on a line, for tensors that are mostly zero.

Zeros enter as a count. The other values are sorted once; a cluster is then a slice, so a Lloyd step costs one sum.

Source: FedZip (Malekijoo et al. 2021) and its code: centroids start at `linspace(min, max, k)` and take 4 Lloyd steps.
Deviations: means divide by all members (the authors' outer clusters divide by their non-zero members); a cluster
without members keeps its centroid and disappears in the end; after the last step every value goes to the nearest
centroid; at most `clusters` distinct values are returned as they are, so that coding them is lossless.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from strategies.compression.base import Array

Init = Literal["linspace", "quantile"]
_SAMPLE = 4096


def centroids(values: Array, num_zeros: int, clusters: int, *, init: Init = "linspace", iterations: int = 4) -> Array:
    """Return at most `clusters` ascending centroids of non-zero `values` (float32 or float64) and of `num_zeros` zeros.

    Args:
        init: `linspace` as the authors; `quantile` starts at zero, where there are zeros, and at even quantiles of the
            values: a smaller error, and fewer zeros.
    """
    dtype = values.dtype
    distinct = _few_distinct(values, num_zeros, clusters)
    if distinct is not None:
        return distinct
    ordered = np.sort(values)
    low, high = float(ordered[0]), float(ordered[-1])
    if num_zeros:
        low, high = min(low, 0.0), max(high, 0.0)
    if init == "linspace":
        means = np.linspace(low, high, clusters)
    else:
        num_quantiles = clusters - min(num_zeros, 1)
        places = ((np.arange(num_quantiles) + 0.5) / max(num_quantiles, 1) * ordered.size).astype(np.int64)
        means = np.sort(np.concatenate([ordered[places].astype(np.float64), np.zeros(min(num_zeros, 1))]))
    for _ in range(iterations):
        middles = means[1:] / 2 + means[:-1] / 2
        edges = np.concatenate([[0], np.searchsorted(ordered, middles, side="right"), [ordered.size]])
        home = int(np.searchsorted(middles, 0.0)) if num_zeros else -1
        for index in range(clusters):
            first, last = int(edges[index]), int(edges[index + 1])
            count = last - first + (num_zeros if index == home else 0)
            if count:
                means[index] = float(ordered[first:last].sum(dtype=np.float64)) / count
    return np.unique(means.astype(dtype))


def assign(values: Array, means: Array) -> Array:
    """Return for each value the number of the nearest centroid (uint8); half way counts as the lower one."""
    middles = (means[1:].astype(np.float64) / 2 + means[:-1].astype(np.float64) / 2).astype(means.dtype)
    middles = np.where(middles < means[1:], middles, means[:-1])  # between neighbouring floats
    if means.size > 8:
        return np.searchsorted(middles, values, side="left").astype(np.uint8)
    labels = np.zeros(values.size, np.uint8)
    for middle in middles:
        labels += values > middle
    return labels


def _few_distinct(values: Array, num_zeros: int, clusters: int) -> Array | None:
    limit = clusters - min(num_zeros, 1)
    if np.unique(values[:_SAMPLE]).size > limit:
        return None
    found = np.unique(values)
    if found.size > limit:
        return None
    return np.unique(np.concatenate([found, np.zeros(min(num_zeros, 1), values.dtype)]))
