"""FedZip by hand: what is kept, what the clusters are, what the bytes say, and how the authors count."""

from __future__ import annotations

import math
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.compression import Codec, CodecError, FedZip, authors_bits, kmeans
from strategies.compression.clusters import Clusters, Encoding

ENCODINGS: tuple[Encoding, ...] = ("huffman", "positions", "differences", "entropy")


def through(codec: Codec, values: list[float]) -> list[float]:
    decoded: list[float] = codec.decode(codec.encode({"w": torch.tensor(values)}))["w"].tolist()
    return decoded


def body(codec: FedZip, tree: dict[str, Tensor]) -> bytes:
    """The record alone: a bound payload without its 14 bytes of header (for short bodies) and 4 of checksum."""
    payload = codec.bind(tree).encode(tree)
    assert payload[:4] == b"OZ\1\1" and payload[12] == len(payload) - 17
    return payload[13:-4]


#            0    1     2    3    4    5    6    7
EXAMPLE = [0.1, 8.0, -0.2, 0.0, 6.0, -4.0, 0.3, 0.0]


def test_top_z_then_four_lloyd_steps_from_linspace() -> None:
    """keep=.375 keeps 8, 6, -4; centroids start at -4, 2, 8 and settle at -4, 0, 7: 6 and 8 share their mean."""
    assert through(FedZip(0.375), EXAMPLE) == [0, 7, 0, 0, 7, -4, 0, 0]


def test_pruned_weights_come_back_as_the_middle_centroid() -> None:
    """keep=.75 keeps .1 to .3 as well; the middle cluster is {.1, -.2, 0, .3, 0}, its mean .04: not zero."""
    assert through(FedZip(0.75), EXAMPLE) == pytest.approx([0.04, 7, 0.04, 0.04, 7, -4, 0.04, 0.04])
    assert through(FedZip(0.75, pin_zero=True), EXAMPLE) == [0, 7, 0, 0, 7, -4, 0, 0]


def test_ties_at_the_threshold_are_kept() -> None:
    assert through(FedZip(0.25), [1.0, -1.0, 1.0, 0.5]) == [1, -1, 1, 0]


def test_biases_are_clustered_but_not_pruned_unless_asked() -> None:
    tree = {"fc.bias": torch.tensor([1.0, 2.0, 3.0])}
    assert torch.equal(FedZip(0.1).decode(FedZip(0.1).encode(tree))["fc.bias"], tree["fc.bias"])
    pruned = FedZip(0.1, skip=None)
    assert pruned.decode(pruned.encode(tree))["fc.bias"].tolist() == [0, 0, 3]


def test_one_threshold_for_the_tree() -> None:
    tree = {"a": torch.tensor([1.0, 0.1]), "b": torch.tensor([[9.0, -7.0]]), "b.bias": torch.tensor([5.0])}
    codec = FedZip(0.5, scope="tree")
    back = codec.decode(codec.encode(tree))
    assert (back["a"].tolist(), back["b"].tolist(), back["b.bias"].tolist()) == ([0, 0], [[9, -7]], [5])
    alone = FedZip(0.5)
    assert alone.decode(alone.encode(tree))["a"].tolist() == [1, 0]


def test_quantiles_keep_what_top_z_kept() -> None:
    """From linspace the middle cluster swallows 1 and -1; from quantiles each side keeps its own."""
    values = [2.0, *[0.9] * 3, *[-0.9] * 3, *[0.0] * 7]
    assert through(FedZip(0.5), values)[1] == pytest.approx(0.27)
    assert through(FedZip(0.5, init="quantile"), values) == pytest.approx([*[1.175] * 4, *[-0.9] * 3, *[0.0] * 7])


def test_huffman_bytes() -> None:
    """Counts 5, 2, 1 give words 0, 10, 11 (largest cluster, then -4, then 7), here stored depth by depth."""
    record = body(FedZip(0.375), {"w": torch.tensor(EXAMPLE)})
    kind, num_values, table = record[0], record[1], np.frombuffer(record[2:10], "<f4")
    assert (kind, num_values) == (0x80, 2)  # huffman, largest cluster exactly zero; three values
    assert table.tolist() == [-4, 7]
    bits = "".join(f"{byte:08b}" for byte in record[10:])
    # 3 symbols less one; more than one occurs; lengths 1, 2, 2 plane by plane; first bits; second bits of 1, 4, 5
    assert bits.startswith("00000010" + "1" + "000" + "000" + "011" + "100" + "01001100" + "110")
    assert set(bits[32:]) <= {"0"}


def test_position_bytes() -> None:
    """One -4 at 5 and two 7 at 1 and 4, three bits each, plane by plane."""
    record = body(FedZip(0.375, encoding="positions"), {"w": torch.tensor(EXAMPLE)})
    assert record[0] == 0x81
    assert record[10:] == bytes([1, 0b101_00000, 2, 0b01_00_10_00])


def test_difference_bytes() -> None:
    """Gap 6 (from -1) for the one -4, gaps 2 and 3 for the 7s."""
    record = body(FedZip(0.375, encoding="differences"), {"w": torch.tensor(EXAMPLE)})
    assert record[0] == 0x82
    # count; code 0 (Rice), r; number of unary bits; unary, then r plain bits: 5 = 10|1 with r=1; 1 and 2 with r=0
    assert record[10:] == bytes([1, 0b00_000001, 3, 0b001_1_0000, 2, 0b00_000000, 5, 0b01_001_000])


def test_the_authors_count_by_hand() -> None:
    """Clusters of 1, 2 and 5: Huffman 2+2+5, addresses 3 x 27, gaps 5 | 1, 3 cost 3 + 1 + 2."""
    count = authors_bits(FedZip(0.375), {"w": torch.tensor(EXAMPLE), "n": torch.tensor(3)})
    assert count == (9, 81, 6, 8)
    assert count.ratio("differences") == 32 * 8 / 6
    assert authors_bits(FedZip(0.5), {"w": torch.zeros(4)}).ratio("positions") == math.inf


@pytest.mark.parametrize(("share", "huffman", "address", "entropy"), [(0.2, 26.7, 5.9, 35.0), (0.01, 31.7, 118, 350.0)])
def test_ratios_on_random_positions_are_those_of_the_specification(
    share: float, huffman: float, address: float, entropy: float
) -> None:
    """Valid Huffman and 27-bit addresses depend on the minority's share alone; ours comes near n H(p) + p n."""
    rng = np.random.default_rng(0)
    size = 1_000_000
    values = np.where(rng.random(size) < share, rng.choice([-1.0, 1.0], size), 0).astype(np.float32)
    tree = {"w": torch.from_numpy(values)}
    sizes = {name: len(FedZip(0.5, encoding=name).bind(tree).encode(tree)) for name in ENCODINGS}
    assert 4 * size / sizes["huffman"] == pytest.approx(huffman, rel=0.01)
    assert authors_bits(FedZip(0.5), tree).ratio("positions") == pytest.approx(address, rel=0.02)
    bound = 32 / (-share * math.log2(share) - (1 - share) * math.log2(1 - share) + share)
    assert bound == pytest.approx(entropy, rel=0.02)
    assert 0.965 * bound < 4 * size / sizes["entropy"] <= 1.005 * bound
    assert sizes["entropy"] <= sizes["differences"] <= sizes["positions"]


def test_columns_are_found_where_weights_gather_in_them() -> None:
    matrix = torch.zeros(128, 900)
    matrix[:, 7:600:90] = torch.randn(128, 7, generator=torch.Generator().manual_seed(1)).sign()
    sizes = [len(FedZip(0.5, encoding="entropy").bind({"w": w}).encode({"w": w})) for w in (matrix, matrix.reshape(-1))]
    assert sizes[0] < 0.6 * sizes[1]
    codec = FedZip(0.5, encoding="entropy")
    assert torch.equal(codec.decode(codec.encode({"w": matrix}))["w"], matrix)


def test_neighbouring_floats_keep_apart() -> None:
    low = np.float32(1)
    values = [float(low), float(np.nextafter(low, np.float32(2))), 0.0]
    assert through(FedZip(1.0), values) == values


def test_no_weight_moves_past_its_nearest_centroid() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for clusters in (3, 17):
        means = kmeans.centroids(values, 0, clusters)
        nearest = np.abs(values[:, None] - means[None, :]).argmin(1)
        assert np.array_equal(kmeans.assign(values, means), nearest)


def test_a_tensor_of_one_value_costs_a_few_bytes_whatever_its_size() -> None:
    tree = {"w": torch.full((1000, 1000), 0.3)}
    assert len(body(FedZip(), tree)) == 2 + 4
    assert len(body(FedZip(), {"w": torch.zeros(1000)})) == 2


def test_a_small_forged_payload_allocates_little() -> None:
    """A header may claim a million elements, but not make arrays of what is not there."""
    tree = {"w": torch.zeros(1000, 1000)}
    codec = FedZip(encoding="differences").bind(tree)
    good = bytearray(codec.encode(tree))
    for kind in range(8):
        record = bytes([kind, 2]) + np.array([0, 1, 2], "<f4").tobytes() + b"\xc0\x84\x3d" * 3
        forged = bytes(good[:12]) + bytes([len(record)]) + record
        forged += zlib.crc32(forged).to_bytes(4, "little")
        tracemalloc.start()
        with pytest.raises(CodecError):
            codec.decode(forged)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep": 0}, "keep=0"),
        ({"keep": 1.5}, "at most 1"),
        ({"clusters": 0}, "clusters=0"),
        ({"clusters": 257}, "1 to 256"),
        ({"encoding": "morse"}, "one of huffman, positions, differences, entropy"),
        ({"scope": "layer"}, "one of tensor, tree"),
        ({"init": "random"}, "one of linspace, quantile"),
        ({"iterations": -1}, "at least 0"),
        ({"skip": "("}, "not a regular expression"),
    ],
)
def test_arguments_that_cannot_be_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FedZip(**wrong)  # type: ignore[arg-type]


def test_clusters_know_their_sizes() -> None:
    found = Clusters(6, np.array([0.0, -1, 2]), np.array([1, 4, 5]), np.array([2, 1, 2], np.uint8))
    assert found.counts.tolist() == [3, 1, 2]
    assert [places.tolist() for places in found.minorities()] == [[4], [1, 5]]
    assert found.dense().tolist() == [0, 2, 0, 0, -1, 2]
