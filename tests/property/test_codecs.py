"""FedZip's verifiable properties, and those of the coders under it, on whatever hypothesis comes up with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies.compression import CodecError, FedZip, Int8, SignSGD, TopK, authors_bits, huffman, kmeans, selection
from strategies.compression import gaps as gap_codes
from strategies.compression.bits import Reader, Writer
from strategies.compression.clusters import Encoding

ENCODINGS: tuple[Encoding, ...] = ("huffman", "positions", "differences", "entropy")

numbers = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-149, -(2.0**-130), 1 + 2.0**-23]),
)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9), elements=numbers)
sparse = st.builds(
    lambda size, seed, keep: np.random.default_rng(seed).standard_normal(size) ** 3 * _chosen(size, seed, keep),
    st.integers(1, 4000),
    st.integers(0, 1000),
    st.sampled_from([0.001, 0.02, 0.3, 1.0]),
).map(lambda array: array.astype(np.float32))
zips = st.builds(
    FedZip,
    keep=st.sampled_from([0.001, 0.01, 0.2, 0.5, 1.0]),
    clusters=st.sampled_from([1, 2, 3, 4, 17]),
    encoding=st.sampled_from(ENCODINGS),
    init=st.sampled_from(["linspace", "quantile"]),
    scope=st.sampled_from(["tensor", "tree"]),
    skip=st.sampled_from([None, "bias"]),
    pin_zero=st.booleans(),
    iterations=st.integers(0, 5),
)


def _chosen(size: int, seed: int, keep: float) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed + 1).random(size) < keep


@given(codec=zips, one=arrays, two=st.one_of(arrays, sparse))
@settings(max_examples=120, deadline=None)
def test_fedzip_decodes_to_exactly_the_quantised_tensors(codec: FedZip, one: Any, two: Any) -> None:
    tree = {"a.weight": torch.from_numpy(one), "b.bias": torch.from_numpy(two)}
    back = codec.decode(codec.encode(tree))
    for names, found in codec.quantised(tree):
        dense = found.dense()
        assert np.array_equal(np.concatenate([back[name].reshape(-1).numpy() for name in names]), dense)
        assert np.unique(dense).size <= codec.clusters
        if found.size:
            counts = found.counts
            assert counts.sum() == found.size and counts[0] == counts.max() and counts.min() > 0


@given(values=sparse, clusters=st.sampled_from([2, 3, 8]))
@settings(max_examples=40, deadline=None)
def test_all_encodings_say_the_same(values: Any, clusters: int) -> None:
    tree = {"w": torch.from_numpy(values)}
    found = [FedZip(0.1, clusters, encoding) for encoding in ENCODINGS]
    trees = [codec.decode(codec.encode(tree))["w"] for codec in found]
    assert all(torch.equal(trees[0], other) for other in trees)
    lengths = [len(codec.encode(tree)) for codec in found]
    few = np.count_nonzero(values) <= 512  # then every code is tried; else small fields are estimated
    assert lengths[3] == min(lengths) if few else lengths[3] <= min(lengths) + 4 * clusters


@given(values=sparse)
@settings(max_examples=60, deadline=None)
def test_no_real_payload_is_shorter_than_its_honest_formula(values: Any) -> None:
    """A valid Huffman code and addresses of `ceil(log2 n)` bits, each with 3 centroids; the 32x ceiling of Huffman."""
    tree = {"w": torch.from_numpy(values)}
    codec = FedZip(0.1)
    [(_, found)] = codec.quantised(tree)
    if found.values.size < 3:
        return
    counts = np.sort(found.counts)
    centroids = 32 * 2
    assert 8 * len(codec.bind(tree).encode(tree)) >= 2 * counts[0] + 2 * counts[1] + counts[2] + centroids
    assert len(codec.bind(tree).encode(tree)) * 32 >= 4 * values.size
    width = max(values.size - 1, 0).bit_length()
    addresses = FedZip(0.1, encoding="positions").bind(tree).encode(tree)
    assert 8 * len(addresses) >= found.positions.size * width + centroids
    count = authors_bits(codec, tree)
    assert count.huffman == 2 * counts[0] + counts[1] + counts[2]
    assert count.positions == 27 * (counts[0] + counts[1])
    if np.diff(found.positions, prepend=0).max(initial=0) < 2**27:
        assert count.differences <= count.positions


@given(values=arrays, clusters=st.integers(1, 6), keep=st.sampled_from([1.0]), encoding=st.sampled_from(ENCODINGS))
@settings(max_examples=80, deadline=None)
def test_keeping_all_with_enough_clusters_loses_nothing(values: Any, clusters: int, keep: float, encoding: Any) -> None:
    few = np.random.default_rng(values.size).choice(values.reshape(-1), values.shape) if values.size else values
    distinct = np.unique(few)
    if distinct.size > clusters:
        few = np.where(np.isin(few, distinct[:clusters]), few, distinct[0])
    tree = {"w": torch.from_numpy(np.asarray(few, np.float32))}
    codec = FedZip(keep, clusters, encoding)
    assert torch.equal(codec.decode(codec.encode(tree))["w"], tree["w"])


@given(counts=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**40)), min_size=1, max_size=256))
def test_huffman_codes_are_complete_and_no_longer_than_shannon_plus_one(counts: list[int]) -> None:
    numbers_of = np.array(counts, np.int64)
    words = huffman.lengths(numbers_of)
    present = numbers_of > 0
    assert words.max() <= huffman.MAX_LENGTH
    assert not words[~present].any()
    if present.sum() > 1:
        assert sum(2.0 ** -int(word) for word in words[present]) == 1.0
        shares = numbers_of[present] / numbers_of.sum()
        assert (words[present] * shares).sum() < -(shares * np.log2(shares)).sum() + 1.05


@given(symbols=st.lists(st.integers(0, 255), max_size=300), shift=st.integers(0, 7))
def test_huffman_returns_the_symbols_wherever_they_start(symbols: list[int], shift: int) -> None:
    array = np.array(symbols, np.uint8)
    out = Writer()
    out.bits(np.ones(shift, np.uint8))
    huffman.write(out, array, np.bincount(array, minlength=1))
    out.varint(77)
    source = Reader(out.getvalue())
    source.bits(shift)
    assert np.array_equal(huffman.read(source, array.size), array)
    assert source.varint() == 77
    source.end()


@given(
    gaps=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 2**31)), max_size=400),
    plain=st.booleans(),
    marked=st.booleans(),
)
def test_gaps_and_their_marks_come_back(gaps: list[int], plain: bool, marked: bool) -> None:
    array = np.array(gaps, np.int64)
    positions = np.cumsum(array) - 1
    marks = (array % 2).astype(np.uint8) if marked else None
    assert np.array_equal(gap_codes.gaps_of(positions), array)
    out = Writer()
    gap_codes.write(out, array, marks, plain=plain)
    source = Reader(out.getvalue())
    bound = int(array.sum()) + 1
    if marked:
        found, found_marks = gap_codes.read_marked(source, array.size, bound)
        assert np.array_equal(found_marks, marks)
    else:
        found = gap_codes.read(source, array.size, bound)
    assert np.array_equal(found, positions)
    source.end()


@given(values=arrays.filter(lambda array: array.size > 0), share=st.floats(0.01, 1))
def test_selection_is_that_of_a_stable_sort(values: Any, share: float) -> None:
    flat = values.reshape(-1)
    count = selection.count_kept(share, flat.size)
    wanted = np.sort(np.argsort(-np.abs(flat), kind="stable")[:count])
    assert np.array_equal(selection.exactly(flat, count), wanted)
    lowest = np.sort(np.abs(flat))[-count]
    assert np.array_equal(selection.with_ties(flat, count), np.flatnonzero((np.abs(flat) >= lowest) & (flat != 0)))


@given(values=arrays.filter(lambda array: array.size > 0), clusters=st.integers(1, 5), iterations=st.integers(0, 6))
def test_kmeans_is_lloyds_on_all_values(values: Any, clusters: int, iterations: int) -> None:
    """Counting zeros and slicing sorted values gives what the textbook loop gives."""
    flat = values.reshape(-1).astype(np.float64)
    if np.unique(flat).size <= clusters:
        return
    means = np.linspace(flat.min(), flat.max(), clusters)
    for _ in range(iterations):
        middles = means[1:] / 2 + means[:-1] / 2
        labels = (flat[:, None] > middles[None, :]).sum(1)
        means = np.array([flat[labels == i].mean() if (labels == i).any() else means[i] for i in range(clusters)])
    some = values.reshape(-1)[values.reshape(-1) != 0]
    found = kmeans.centroids(some, flat.size - some.size, clusters, iterations=iterations)
    wanted = np.unique(means.astype(np.float32))
    scale = np.abs(flat).max()
    assert all(np.abs(wanted - mean).min() <= 1e-5 * scale for mean in found)


@given(values=arrays)
def test_nearest_rounding_errs_by_half_a_step(values: Any) -> None:
    tree = {"w": torch.from_numpy(values)}
    back = Int8().decode(Int8().encode(tree))["w"].numpy()
    largest = np.abs(values).max(initial=0)
    assert np.abs(back - values).max(initial=0) <= largest / 127 * 0.501 + 1e-36


@given(values=arrays, keep=st.sampled_from([0.05, 0.5, 1.0]))
def test_top_k_and_signs_are_contractions(values: Any, keep: float) -> None:
    tree = {"w": torch.from_numpy(np.asarray(values / np.float32(1e15)))}
    for codec in (TopK(keep), SignSGD(), FedZip(keep), FedZip(keep, init="quantile", pin_zero=True)):
        back = codec.decode(codec.encode(tree))["w"].double()
        exact = tree["w"].double()
        assert float((back - exact).square().sum()) <= float(exact.square().sum()) * (1 + 1e-5) + 1e-70


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for codec in (FedZip(), TopK(), Int8()):
        try:
            codec.decode(data)
        except CodecError:
            continue
        raise AssertionError("decoded noise")
