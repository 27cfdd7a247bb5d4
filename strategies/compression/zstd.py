"""Zstandard over the finished body: lossless, and worth it behind int8 or on sparse dense tensors.

Source: RFC 8878, through pyarrow's codec. The length of the body goes in front and is checked against what the schema
allows before anything is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from strategies.compression.base import CodecError
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import ByteStage


@dataclass(frozen=True)
class Zstd(ByteStage):
    """Compress bytes.

    Args:
        level: 1 (fast) to 19 (small).
    """

    level: int = 3
    name: ClassVar[str] = "zstd"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.level <= 19:
            raise ValueError(f"level={self.level}: 1 to 19")

    def squeeze(self, body: bytes) -> bytes:
        """See `ByteStage`."""
        out = Writer()
        out.varint(len(body))
        if body:
            out.raw(pa.Codec("zstd", self.level).compress(body, asbytes=True))
        return out.getvalue()

    def expand(self, data: memoryview, limit_bytes: int) -> bytes | memoryview:
        """See `ByteStage`."""
        source = Reader(data)
        length = source.varint()
        if length > limit_bytes:
            raise CodecError(f"a body of {length} bytes, at most {limit_bytes} are possible")
        packed = source.raw(source.num_bytes_left)
        if not length:
            if len(packed):
                raise CodecError(f"{len(packed)} bytes too many")
            return b""
        try:
            found = pa.Codec("zstd").decompress(pa.py_buffer(np.frombuffer(packed, np.uint8)), length)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CodecError(f"not a Zstandard frame of {length} bytes: {error}") from error
        if found.size != length:
            raise CodecError(f"{found.size} bytes decompressed, {length} announced")
        return memoryview(found)
