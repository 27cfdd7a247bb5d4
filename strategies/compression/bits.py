"""Bits and bytes of a payload, written and read whole arrays at a time.

A field of bits starts where the last one ended; a field of bytes starts at the next whole byte. Integers wider than a
bit are written plane by plane, the highest bit of all values first: as many bits as value by value, and no loop over
values. The reader checks every length against what is left before it allocates.
"""

from __future__ import annotations

import numpy as np

from strategies.compression.base import Array, CodecError

_NO_BITS = np.zeros(0, np.uint8)
_MAX_VARINT_BYTES = 9  # 63 bits


class Writer:
    """Collects the body of a payload."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._carry: Array = _NO_BITS

    def bits(self, bits: Array) -> None:
        """Append an array of zeros and ones."""
        if self._carry.size:
            bits = np.concatenate([self._carry, bits.view(np.uint8)])
        whole = bits.size & ~7
        if whole:
            self._parts.append(np.packbits(bits[:whole]).tobytes())
        self._carry = bits[whole:].view(np.uint8).copy()

    def fixed(self, values: Array, width: int) -> None:
        """Append non-negative integers of `width` bits each."""
        for bit in range(width - 1, -1, -1):
            self.bits(((values >> bit) & 1).astype(np.uint8))

    def variable(self, values: Array, widths: Array) -> None:
        """Append of each integer its lowest `widths[i]` bits."""
        for bit in range(int(widths.max(initial=0)) - 1, -1, -1):
            self.bits(((values[widths > bit] >> bit) & 1).astype(np.uint8))

    def raw(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        if self._carry.size:
            self._parts.append(np.packbits(self._carry).tobytes())
            self._carry = _NO_BITS
        self._parts.append(bytes(data))

    def array(self, values: Array) -> None:
        """Append the bytes of an array, lowest byte first."""
        self.raw(np.ascontiguousarray(values).tobytes())

    def varint(self, value: int) -> None:
        """Append a non-negative integer below 2**63, seven bits a byte, lowest first."""
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self.raw(bytes(out))

    def getvalue(self) -> bytes:
        """Return all that was written, padded with zero bits to a whole byte."""
        self.raw(b"")
        return b"".join(self._parts)


class Reader:
    """Reads what `Writer` wrote; whatever is missing is a `CodecError`."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0  # in bits

    @property
    def num_bytes_left(self) -> int:
        """Whole bytes not read yet."""
        return len(self._data) - (self._at + 7) // 8

    def bits(self, count: int) -> Array:
        """Read `count` zeros and ones as uint8."""
        if not 0 <= count <= len(self._data) * 8 - self._at:
            raise CodecError(f"{count} bits expected, {len(self._data) * 8 - self._at} left")
        first, last, skip = self._at // 8, (self._at + count + 7) // 8, self._at % 8
        self._at += count
        whole = np.unpackbits(np.frombuffer(self._data[first:last], np.uint8), count=skip + count)
        return whole[skip:]

    def fixed(self, count: int, width: int) -> Array:
        """Read `count` integers of `width` bits as int64."""
        if not 0 <= width <= 62 or count * width > len(self._data) * 8 - self._at:
            raise CodecError(f"{count} integers of {width} bits are more than is left")
        values = np.zeros(count, np.int64)
        for _ in range(width):
            values <<= 1
            values |= self.bits(count)
        return values

    def variable(self, widths: Array) -> Array:
        """Read one integer of each width as int64."""
        values = np.zeros(widths.size, np.int64)
        highest = int(widths.max(initial=0))
        if highest > 62 or int(widths.sum()) > len(self._data) * 8 - self._at:
            raise CodecError("integers of these widths are more than is left")
        for bit in range(highest - 1, -1, -1):
            chosen = widths > bit
            values[chosen] |= self.bits(int(np.count_nonzero(chosen))).astype(np.int64) << bit
        return values

    def raw(self, count: int) -> memoryview:
        """Read `count` bytes, without a copy."""
        if not 0 <= count <= self.num_bytes_left:
            raise CodecError(f"{count} bytes expected, {self.num_bytes_left} left")
        first = (self._at + 7) // 8
        self._at = (first + count) * 8
        return self._data[first : first + count]

    def array(self, count: int, dtype: type[np.generic]) -> Array:
        """Read `count` numbers into an array of their own."""
        return np.frombuffer(self.raw(count * np.dtype(dtype).itemsize), dtype).copy()

    def varint(self) -> int:
        """Read a non-negative integer below 2**63."""
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            byte = self.raw(1)[0]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value
        raise CodecError("an integer takes more than 63 bits")

    def end(self) -> None:
        """Insist that everything was read."""
        if self.num_bytes_left:
            raise CodecError(f"{self.num_bytes_left} bytes too many")
