"""The frame of every payload: what wrote it, for which tree, and whether it arrived whole.

    "OZ" version flags | signature, schema | body length, body | CRC-32 of all before it

The signature names the chain and the arguments that decoding depends on. The schema lists names, dtypes and shapes;
a bound codec sends an 8-byte hash of signature and schema in place of both. Sizes are checked against the caller's
limit before anything is allocated. A checksum finds accidents, not forgers: whoever can write a payload can write its
checksum, so everything behind this frame checks what it reads again.
"""

from __future__ import annotations

import hashlib
import math
import zlib

from strategies.compression.base import DTYPES, CodecError, Spec, Specs
from strategies.compression.bits import Reader, Writer

_MAGIC = b"OZ"
_VERSION = 1
_SELF_DESCRIBING, _BOUND = 0, 1
_CHECKSUM_BYTES = 4
_HASH_BYTES = 8
_MAX_NAME_BYTES = 4096
_MAX_DIMENSIONS = 32


def seal(signature: str, specs: Specs, body: bytes, *, bound: bool) -> bytes:
    """Return the payload around a body."""
    out = Writer()
    out.raw(_MAGIC + bytes([_VERSION, _BOUND if bound else _SELF_DESCRIBING]))
    if bound:
        out.raw(fingerprint(signature, specs))
    else:
        _write_text(out, signature)
        out.raw(schema_bytes(specs))
    out.varint(len(body))
    out.raw(body)
    framed = out.getvalue()
    return framed + zlib.crc32(framed).to_bytes(_CHECKSUM_BYTES, "little")


def unseal(payload: bytes | memoryview, signature: str, schema: Specs | None, max_bytes: int) -> tuple[Specs, Reader]:
    """Check a payload's frame; return the schema of its tree and its body.

    Args:
        signature: what the payload must have been written by.
        schema: what the payload must be for; None accepts what the payload says, within `max_bytes`.

    Raises:
        CodecError: when any of it does not fit.
    """
    try:
        data = memoryview(payload).cast("B")
    except TypeError as error:
        raise CodecError(f"a payload is bytes, got {type(payload).__name__}") from error
    source = Reader(data[: max(len(data) - _CHECKSUM_BYTES, 0)])
    head = bytes(source.raw(4))
    if head[:2] != _MAGIC or head[2] != _VERSION or head[3] not in (_SELF_DESCRIBING, _BOUND):
        raise CodecError(f"not a payload of version {_VERSION}: it begins with {head.hex()}")
    if zlib.crc32(data[:-_CHECKSUM_BYTES]) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise CodecError("the payload is damaged: its checksum does not fit")
    if head[3] == _BOUND:
        if schema is None:
            raise CodecError(
                "the payload names no tensors: decode it with the codec bound to the model, codec.bind(tree)"
            )
        if bytes(source.raw(_HASH_BYTES)) != fingerprint(signature, schema):
            raise CodecError(f"the payload was written for another model or by another codec than {signature}")
        specs = schema
    else:
        written_by = _read_text(source)
        if written_by != signature:
            raise CodecError(f"the payload was written by {written_by!r}, this codec is {signature!r}")
        specs = _read_schema(source, max_bytes)
        if schema is not None and (specs != schema or list(specs) != list(schema)):
            raise CodecError("the payload's tensors are not those that this codec is bound to")
    if sum(spec.num_bytes for spec in specs.values()) > max_bytes:
        raise CodecError(f"the tree takes more than max_bytes={max_bytes}")
    if source.varint() != source.num_bytes_left:
        raise CodecError("the body is not as long as the header says")
    return specs, Reader(source.raw(source.num_bytes_left))


def fingerprint(signature: str, specs: Specs) -> bytes:
    """Return the hash that stands for a signature and a schema."""
    return hashlib.sha256(signature.encode() + b"\0" + schema_bytes(specs)).digest()[:_HASH_BYTES]


def schema_bytes(specs: Specs) -> bytes:
    """Return names, dtypes and shapes as bytes."""
    out = Writer()
    out.varint(len(specs))
    for name, spec in specs.items():
        _write_text(out, name)
        out.varint(DTYPES.index(spec.dtype))
        out.varint(len(spec.shape))
        for size in spec.shape:
            out.varint(size)
    return out.getvalue()


def _read_schema(source: Reader, max_bytes: int) -> Specs:
    specs: dict[str, Spec] = {}
    total = 0
    for _ in range(_at_most(source, source.num_bytes_left, "tensors")):
        name = _read_text(source)
        if name in specs:
            raise CodecError(f"tensor {name!r} is listed twice")
        dtype = DTYPES[_at_most(source, len(DTYPES) - 1, "dtype")]
        shape = tuple(source.varint() for _ in range(_at_most(source, _MAX_DIMENSIONS, "dimensions")))
        specs[name] = Spec(shape, dtype)
        total += specs[name].num_bytes
        if total > max_bytes or math.prod(max(size, 1) for size in shape) * dtype.itemsize > max_bytes:
            raise CodecError(f"the tree takes more than max_bytes={max_bytes}")
    return specs


def _at_most(source: Reader, limit: int, what: str) -> int:
    value = source.varint()
    if value > limit:
        raise CodecError(f"{what}: {value} is out of range")
    return value


def _write_text(out: Writer, text: str) -> None:
    data = text.encode()
    if len(data) > _MAX_NAME_BYTES:
        raise ValueError(f"a name of {len(data)} bytes is longer than {_MAX_NAME_BYTES}: {text[:60]!r}...")
    out.varint(len(data))
    out.raw(data)


def _read_text(source: Reader) -> str:
    try:
        return bytes(source.raw(_at_most(source, _MAX_NAME_BYTES, "length of a name"))).decode()
    except UnicodeDecodeError as error:
        raise CodecError("a name is not UTF-8") from error
