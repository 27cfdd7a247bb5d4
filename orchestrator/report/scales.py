"""Numbers as people read them, and the round values that an axis is marked at."""

from __future__ import annotations

import math
from collections.abc import Callable

Format = Callable[[float], str]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values from at or below `low` to at or above `high`.

    Source: P. Heckbert, "Nice numbers for graph labels", Graphics Gems (1990).
    """
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        spread = abs(low) * 0.1 if math.isfinite(low) and low else 1.0
        low, high = (low - spread, low + spread) if math.isfinite(low) else (0.0, 1.0)
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) if abs(step) > 1e-9 else index * step for index in range(first, last + 1)]


def time_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` seconds that read well as minutes, hours or days."""
    rough = (high - low) / max(count - 1, 1)
    if rough < 10:
        return ticks(low, high, count)
    steps = (10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    step = next((step for step in steps if step >= rough), math.ceil(rough / 86400) * 86400)
    return [float(index * step) for index in range(math.floor(low / step), math.ceil(high / step) + 1)]


def whole_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return about `count` whole numbers inside `[low, high]`, for rounds and counts."""
    step = max(1.0, ticks(0, max(high - low, 1), count)[1])
    step = math.ceil(step)
    return [float(value) for value in range(math.ceil(low / step) * step, math.floor(high) + 1, step)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten around `[low, high]`, thinned to seven at most."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 6))
    return [10.0**power for power in range(first, last + stride, stride)]


def plain(value: float) -> str:
    """`1234.5` -> `1,234.5`; `0.00012` -> `1.2e-4`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "\N{MINUS SIGN}∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    elif size >= 100 or value == int(value):
        text = f"{value:,.1f}".removesuffix(".0")
    else:
        text = f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") else text


def percent(value: float) -> str:
    """`0.8731` -> `87.3 %`."""
    return f"{100 * value:.1f}".removesuffix(".0") + " %" if math.isfinite(value) else plain(value)


def size(value: float) -> str:
    """Bytes: `1500` -> `1.5 kB`."""
    return _scaled(value, 1000.0, ("B", "kB", "MB", "GB", "TB", "PB"))


def memory(value: float) -> str:
    """Bytes of memory: `1610612736` -> `1.5 GiB`."""
    return _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return plain(value)
    index = 0
    while abs(value) >= base * 0.9995 and index < len(units) - 1:
        value, index = value / base, index + 1
    return f"{value:.3g} {units[index]}" if abs(value) < 999.5 else f"{value:.0f} {units[index]}"


def duration(value: float) -> str:
    """Seconds: `0.0123` -> `12.3 ms`, `75` -> `1 min 15 s`, `93784` -> `1 d 2 h`."""
    if not math.isfinite(value):
        return plain(value)
    if value < 0:
        return "\N{MINUS SIGN}" + duration(-value)
    if value < 60:
        return f"{1000 * value:.3g} ms" if 0 < value < 0.9995 else f"{value:.3g} s"
    seconds = round(value)
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    while parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def count(value: float) -> str:
    """`1234567` -> `1.23 M`, whole below ten thousand."""
    if not math.isfinite(value) or abs(value) < 10_000:
        return plain(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g} {unit}"
    return plain(value)
