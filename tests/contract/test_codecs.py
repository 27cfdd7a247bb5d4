"""What every codec and every sensible chain promises; a new codec adds a row in `codec_rows`."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest
import torch

from strategies.compression import CODECS, CodecError, FedZip, build, compensate

sys.path.insert(0, str(Path(__file__).parent))
from codec_rows import EXACT, ROWS, STABLE, UNBIASED, everything

sys.path.pop(0)

every = pytest.mark.parametrize("name", ROWS)


def resealed(payload: bytes) -> bytes:
    """The payload with a checksum that fits."""
    return payload[:-4] + zlib.crc32(payload[:-4]).to_bytes(4, "little")


def test_every_codec_has_a_row() -> None:
    assert {entry["name"] for entries in ROWS.values() for entry in entries} == set(CODECS)


@every
@pytest.mark.parametrize("bound", [False, True])
def test_a_tree_comes_back_with_its_names_order_shapes_and_dtypes(name: str, bound: bool) -> None:
    tree = everything()
    codec = build(ROWS[name]).bind(tree) if bound else build(ROWS[name])
    back = codec.decode(codec.encode(tree))
    assert list(back) == list(tree)
    for key, tensor in tree.items():
        assert (back[key].shape, back[key].dtype) == (tensor.shape, tensor.dtype), key
        assert torch.isfinite(back[key].double()).all(), key
        if not tensor.is_floating_point():
            assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize("name", EXACT)
def test_exact_codecs_return_every_number(name: str) -> None:
    tree = everything()
    back = build(EXACT[name]).decode(build(EXACT[name]).encode(tree))
    for key, tensor in tree.items():
        assert torch.equal(back[key], tensor), key


@every
def test_a_tree_of_nothing_comes_back(name: str) -> None:
    codec = build(ROWS[name])
    assert codec.decode(codec.encode({})) == {}


@pytest.mark.parametrize("name", [*EXACT, *STABLE])
def test_encoding_what_was_decoded_gives_the_same_bytes(name: str) -> None:
    codec = build(ROWS[name])
    tree = {key: tensor for key, tensor in everything().items() if tensor.dtype not in (torch.bfloat16, torch.float16)}
    if name == "signsgd":
        del tree["double"]
    payload = codec.encode(tree)
    assert codec.encode(codec.decode(payload)) == payload


@every
def test_bytes_are_a_function_of_tree_and_seed(name: str) -> None:
    codec = build(ROWS[name])
    tree = everything()
    assert codec.seeded(3).encode(tree) == codec.seeded(3).encode(tree)
    assert (codec.seeded(3).encode(tree) != codec.seeded(4).encode(tree)) == any(stage.random for stage in codec.stages)
    assert (codec.seeded(3) is codec) == (not any(stage.random for stage in codec.stages))


@every
def test_bytes_do_not_depend_on_how_a_tensor_lies_in_memory(name: str) -> None:
    codec = build(ROWS[name])
    tree = everything()
    strange = {
        key: tensor.t().contiguous().t() if tensor.dim() == 2 else torch.stack([tensor, tensor], -1)[..., 0]
        for key, tensor in tree.items()
    }
    assert not strange["fc.weight"].is_contiguous() and not strange["conv.weight"].is_contiguous()
    assert codec.encode(strange) == codec.encode(tree)


@every
def test_the_receiver_needs_no_seed(name: str) -> None:
    tree = everything()
    payload = build(ROWS[name]).seeded(99).encode(tree)
    one, other = build(ROWS[name]).decode(payload), build(ROWS[name]).seeded(1).decode(payload)
    assert all(torch.equal(one[key], other[key]) for key in tree)


@every
def test_what_was_decoded_shares_no_memory_with_the_payload_or_the_tree(name: str) -> None:
    codec = build(ROWS[name])
    tree = everything()
    before = {key: tensor.clone() for key, tensor in tree.items()}
    payload = bytearray(codec.encode(tree))
    back = codec.decode(memoryview(payload))
    copies = {key: tensor.clone() for key, tensor in back.items()}
    payload[:] = bytes(len(payload))
    for key, tensor in back.items():
        assert torch.equal(tensor, copies[key])
        tensor.zero_()
        assert torch.equal(tree[key], before[key])


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_codecs_are_right_on_average(name: str) -> None:
    """The mean over seeds is as far from the tensor as its standard error says, and in no direction of it."""
    codec = build(UNBIASED[name])
    rng = torch.Generator().manual_seed(5)
    tensor = torch.randn(30, 10, generator=rng)
    num_draws = 200
    draws = torch.stack([codec.decode(codec.seeded(seed).encode({"w": tensor}))["w"] for seed in range(num_draws)])
    wrong = draws.double().mean(0) - tensor
    variance = draws.double().var(0) / num_draws
    assert 0.5 < float(wrong.square().sum() / variance.sum()) < 1.5
    assert abs(float((wrong * tensor).sum())) < 4.5 * float((variance * tensor.square()).sum().sqrt())


@every
def test_a_shortened_payload_is_refused(name: str) -> None:
    codec = build(ROWS[name])
    payload = codec.encode(everything())
    for length in [*range(40), len(payload) // 2, len(payload) - 1]:
        with pytest.raises(CodecError):
            codec.decode(payload[:length])
        with pytest.raises(CodecError):
            codec.decode(resealed(payload[:length]))
    with pytest.raises(CodecError):
        codec.decode(payload + b"\0")
    with pytest.raises(CodecError, match="bytes"):
        codec.decode("not bytes")  # type: ignore[arg-type]


@every
def test_a_flipped_bit_is_noticed(name: str) -> None:
    codec = build(ROWS[name])
    payload = codec.encode(everything())
    step = max(len(payload) * 8 // 150, 1)
    for place in range(0, len(payload) * 8, step):
        damaged = bytearray(payload)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(CodecError):
            codec.decode(bytes(damaged))


@every
def test_a_payload_of_another_codec_version_or_model_is_refused(name: str) -> None:
    tree = everything()
    codec = build(ROWS[name])
    other = build([{"name": "int8"}] if name == "dense" else [])
    with pytest.raises(CodecError, match="was written by"):
        codec.decode(other.encode(tree))
    with pytest.raises(CodecError, match="not a payload of version 1"):
        codec.decode(resealed(b"OZ\2" + codec.encode(tree)[3:]))
    bound = codec.bind(tree)
    less = dict(list(tree.items())[1:])
    with pytest.raises(CodecError, match="another model"):
        codec.bind(less).decode(bound.encode(tree))
    with pytest.raises(CodecError, match="names no tensors"):
        codec.decode(bound.encode(tree))
    with pytest.raises(CodecError, match="not those that this codec is bound to"):
        codec.bind(less).decode(codec.encode(tree))
    with pytest.raises(ValueError, match=r"bound to another tree.*conv\.weight"):
        bound.encode(less)
    turned = dict(reversed(tree.items()))
    with pytest.raises(ValueError, match="order"):
        bound.encode(turned)
    assert list(bound.decode(codec.encode(tree))) == list(tree)
    assert len(bound.encode(tree)) < len(codec.encode(tree)) - 100


@every
def test_a_tree_larger_than_allowed_is_refused_before_it_is_made(name: str) -> None:
    codec = build(ROWS[name])
    tree = everything()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tree.values())
    payload = codec.encode(tree)
    assert list(codec.decode(payload, max_bytes=size)) == list(tree)
    with pytest.raises(CodecError, match="max_bytes"):
        codec.decode(payload, max_bytes=size - 1)
    with pytest.raises(CodecError, match="max_bytes"):
        codec.bind(tree).decode(codec.bind(tree).encode(tree), max_bytes=size - 1)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_by_name(name: str, bad: float) -> None:
    tree = {"fine": torch.ones(3), "layer.weight": torch.tensor([1.0, bad])}
    codec = build(ROWS[name])
    if name in ("dense", "zstd"):
        assert torch.equal(codec.decode(codec.encode(tree))["layer.weight"], tree["layer.weight"]) or bad != bad
    else:
        with pytest.raises(ValueError, match=r"layer\.weight.*NaN or infinity"):
            codec.encode(tree)


def test_a_dtype_that_no_payload_holds_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'spectrum'.*complex64"):
        build([]).encode({"spectrum": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.parametrize("name", [name for name in ROWS if build(ROWS[name]).contractive])
def test_error_feedback_owes_less_and_less_of_a_constant_gradient(name: str) -> None:
    """The mean of what arrived tends to what was sent, as 1/n: the residual stays bounded."""
    rng = torch.Generator().manual_seed(1)
    tree = {"w": torch.randn(24, 16, generator=rng), "n": torch.tensor(3)}
    codec = build(ROWS[name])
    residual, total = None, torch.zeros(24, 16)
    for step in range(60):
        sent = compensate(codec.seeded(step), tree, residual)
        residual, total = sent.residual, total + sent.decoded["w"]
        assert torch.equal(sent.decoded["n"], tree["n"]) and "n" not in residual
    assert float((total / 60 - tree["w"]).norm() / tree["w"].norm()) < 0.45
    assert torch.allclose(total + residual["w"], 60 * tree["w"], atol=2e-3)


@pytest.mark.parametrize("name", [name for name in ROWS if not build(ROWS[name]).contractive])
def test_error_feedback_is_refused_where_it_would_diverge(name: str) -> None:
    with pytest.raises(ValueError, match="error feedback diverges"):
        compensate(build(ROWS[name]), {"w": torch.ones(3)})


def test_a_bound_fedzip_payload_is_mostly_content() -> None:
    tree = {"w": torch.zeros(1000)}
    tree["w"][7] = 1
    assert len(FedZip(0.001, encoding="entropy").bind(tree).encode(tree)) < 40
