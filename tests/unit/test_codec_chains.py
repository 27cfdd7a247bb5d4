"""Chains: which go together, how they are built from a file's list, and what their bytes are."""

from __future__ import annotations

import re
import zlib

import pyarrow as pa
import pytest
import torch

from strategies.compression import CODECS, Chain, CodecError, Int8, TopK, Zstd, arguments, build, chain, codec

NAMES = list(CODECS)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["int8", "top-k"], "top-k must stand before int8; the order is"),
        (["zstd", "fp16"], "fp16 must stand before zstd"),
        (["top-k", "random-k"], "top-k and random-k both reduce; keep one"),
        (["fp16", "int8"], "fp16 and int8 both quantise; keep one"),
        (["zstd", "zstd"], "both compress bytes"),
        (["top-k", "fedzip"], "fedzip reduces, quantises and codes at once; drop top-k"),
        (["fedzip", "int8"], "drop int8"),
        (["powersgd", "top-k"], "both reduce"),
    ],
)
def test_codecs_that_do_not_go_together_are_refused_with_the_reason(names: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        build([{"name": name} for name in names])
    assert str(refused.value).startswith(" then ".join(names))


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_every_pair_either_works_or_is_refused(first: str, second: str) -> None:
    tree = {"w": torch.randn(20, 15, generator=torch.Generator().manual_seed(0)), "n": torch.tensor(4)}
    try:
        both = chain([codec(first), codec(second)])
    except ValueError:
        return
    back = both.decode(both.encode(tree))
    assert back["w"].shape == (20, 15) and int(back["n"]) == 4
    assert both.name == f"{first}+{second}"


def test_chains_of_chains_are_chains() -> None:
    assert chain([chain([TopK(), Int8()]), Zstd()]) == chain([TopK(), Int8(), Zstd()])
    with pytest.raises(ValueError, match="not a codec"):
        chain(["int8"])  # type: ignore[list-item]


def test_an_empty_list_sends_trees_as_they_are() -> None:
    assert build([]) == Chain(())
    assert build([]).name == "dense"


def test_names_and_arguments_that_are_not_known_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no codec is called 'topk'.*Did you mean 'top-k'\?"):
        codec("topk")
    with pytest.raises(ValueError, match=r"top-k takes no 'kep'; it takes keep, scope\. Did you mean 'keep'\?"):
        codec("top-k", kep=0.1)
    with pytest.raises(ValueError, match="a codec needs a name"):
        build([{"keep": 0.1}])
    with pytest.raises(ValueError, match=r"top-k: keep='much'"):
        codec("top-k", keep="much")
    assert arguments("zstd") == ("level",)


def test_a_top_k_int8_payload_is_a_quarter_of_top_k_in_values() -> None:
    tree = {"w": torch.randn(40_000, generator=torch.Generator().manual_seed(0))}
    sparse = len(TopK(0.25).bind(tree).encode(tree))
    both = len(chain([TopK(0.25), Int8()]).bind(tree).encode(tree))
    assert sparse - both == 10_000 * 3 - 4 + 1  # a scale; one byte less to say how long the body is


def forged(payload: bytes, body: bytes) -> bytes:
    """A bound payload with another body."""
    framed = payload[:12] + bytes([len(body)]) + body
    return framed + zlib.crc32(framed).to_bytes(4, "little")


def test_a_zstd_body_that_claims_too_much_is_refused_before_it_is_made() -> None:
    tree = {"w": torch.zeros(100)}
    bound = chain([Zstd()]).bind(tree)
    payload = bound.encode(tree)
    packed = pa.Codec("zstd").compress(bytes(400), asbytes=True)
    assert torch.equal(bound.decode(forged(payload, b"\x90\x03" + packed))["w"], tree["w"])
    for claimed, said in (
        (b"\x8f\x03", "Zstandard"),
        (b"\x91\x03", "401 announced|Zstandard"),
        (b"\xff\xff\xff\xff\x7f", "at most"),
        (b"\0", "too many"),
    ):
        with pytest.raises(CodecError, match=said):
            bound.decode(forged(payload, claimed + packed))


def test_a_chain_that_makes_a_tree_longer_still_decodes() -> None:
    """A norm for each element of a half-precision tensor takes three times the tensor."""
    tree = {"w": torch.randn(20_000, generator=torch.Generator().manual_seed(0)).half()}
    longer = build([{"name": "qsgd", "bucket": 1, "levels": 127}, {"name": "zstd"}])
    assert torch.equal(longer.decode(longer.encode(tree))["w"], tree["w"])


def test_zstd_levels_have_limits() -> None:
    with pytest.raises(ValueError, match="level=20: 1 to 19"):
        Zstd(20)


def test_the_bytes_of_a_payload_are_frozen() -> None:
    """A stored payload stays readable: change the version when this test has to change."""
    payload = build([{"name": "int8"}]).encode({"w": torch.tensor([1.0, -0.5])})
    assert payload[:-4] == (
        b"OZ\1\0" + b"\4int8" + b"\1" + b"\1w" + b"\0" + b"\1\2" + b"\6" + b"\0\0\x80\x3f" + bytes([127, 256 - 64])
    )
