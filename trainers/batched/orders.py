"""Which examples each step of each client takes: the orders of `trainers.local.batches`, for many clients at once.

A numpy generator costs 20 microseconds to seed, four fifths of what a small client's permutation costs. Here the
words that differ between clients are mixed into the seeds of all of them together, and one generator is set to the
state of each in turn: the same bits in a quarter of the time.

Source: O'Neill's seed_seq as numpy.random.SeedSequence has it, and PCG64's seeding (numpy/random/src/pcg64); both are
streams that numpy promises not to change, and `tests/parity/test_batched.py` compares them with `strategies.seeds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from strategies.seeds import generator, purpose_word
from trainers.local import LocalSettings, Task

_WORD, _LONG = 0xFFFFFFFF, (1 << 128) - 1
_INIT_A, _MULT_A, _INIT_B, _MULT_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
_MIX_L, _MIX_R = 0xCA01F9DD, 0x4973F715
_HALF = np.uint32(16)
_PCG_MULT = 0x2360ED051FC65DA44385DF649FCCF645


class Schedule(NamedTuple):
    """The batches of a group of clients, longest first, so that the clients still at work are always the first ones.

    Args:
        order: the place in the group that each row had.
        sizes, num_steps: examples and steps of each row.
        chosen: example numbers within the client; where a batch is short, its first example fills it up.
        counts: how many of them count.

    Shapes: `order, sizes, num_steps [C]`, `chosen [C, S, B]`, `counts [C, S]`.
    """

    order: np.ndarray
    sizes: np.ndarray
    num_steps: np.ndarray
    chosen: np.ndarray
    counts: np.ndarray


def schedule(
    tasks: Sequence[Task],
    sizes: Sequence[int],
    settings: LocalSettings,
    run_seed: int,
    drawn: Sequence[Sequence[Tensor] | None] = (),
) -> Schedule:
    """Return what `trainers.local.batches` would yield for each task, side by side.

    Args:
        drawn: of each task its steps, where they are drawn already.

    Raises:
        ValueError: when a task is to make no steps.
    """
    known = drawn or [None] * len(tasks)
    wanted = [
        len(steps) if steps is not None else settings.num_steps(size) if task.num_steps is None else task.num_steps
        for task, size, steps in zip(tasks, sizes, known, strict=True)
    ]
    for task, steps in zip(tasks, wanted, strict=True):
        if steps < 1:
            raise ValueError(f"client {task.client} is to make {steps} steps; a participation makes at least one")
    order = np.argsort(np.negative(wanted), kind="stable")
    widths = [
        min(settings.batch_size or size, size) if steps is None else max(map(len, steps))
        for size, steps in zip(sizes, known, strict=True)
    ]
    longest, widest = max(wanted), max(widths)
    chosen = np.zeros((len(tasks), longest, widest), dtype=np.int64)
    counts = np.zeros((len(tasks), longest), dtype=np.int64)
    drawing = generators(run_seed, "batches", [tasks[place].seed_indices for place in order])
    for row, (place, rng) in enumerate(zip(order, drawing, strict=True)):
        width, steps = widths[place], wanted[place]
        given = known[place]
        if given is not None:
            for step, examples in enumerate(given):
                counts[row, step] = len(examples)
                chosen[row, step, : len(examples)], chosen[row, step, len(examples) :] = examples, examples[0]
            continue
        taken, full = _pass(sizes[place], width)
        for start in range(0, steps, len(taken)):
            stop = min(start + len(taken), steps)
            chosen[row, start:stop, :width] = rng.permutation(sizes[place])[taken[: stop - start]]
            counts[row, start:stop] = full[: stop - start]
        if width < widest:
            chosen[row, :steps, width:] = chosen[row, :steps, :1]
    return Schedule(order, np.asarray(sizes)[order], np.asarray(wanted)[order], chosen, counts)


@lru_cache(maxsize=1024)
def _pass(size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where in a drawn order each batch of a pass finds its examples `[S, B]`, and how many count `[S]`."""
    starts = np.arange(0, size, width)
    places = starts[:, None] + np.arange(width)
    return np.where(places < size, places, starts[:, None]), np.minimum(size - starts, width)


def firsts(sizes: Sequence[int]) -> np.ndarray:
    """Return the number of the first example of each client when all lie end to end, `[C]`."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def generators(run_seed: int, purpose: str, indices: Sequence[tuple[int, ...]]) -> Iterator[np.random.Generator]:
    """Yield `strategies.seeds.generator(run_seed, purpose, *each)` for each of `indices`.

    It is one generator whose state is set anew: draw from it before asking for the next.
    """
    if any(len(each) != len(indices[0]) or max(each) > _WORD for each in indices):
        yield from (generator(run_seed, purpose, *each) for each in indices)
        return
    pool, constant = _common(run_seed, purpose)
    columns = [np.array(column, dtype=np.uint32) for column in zip(*indices, strict=True)]
    words = _words(pool, constant, columns)
    source = np.random.PCG64(0)
    rng = np.random.Generator(source)
    for row in words.T.tolist():
        seed = (row[1] << 96) | (row[0] << 64) | (row[3] << 32) | row[2]
        stream = (row[5] << 96) | (row[4] << 64) | (row[7] << 32) | row[6]
        increment = (stream << 1 | 1) & _LONG
        state = ((increment + seed) * _PCG_MULT + increment) & _LONG
        source.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        yield rng


@lru_cache(maxsize=64)
def _common(run_seed: int, purpose: str) -> tuple[tuple[int, ...], int]:
    """Mix the words that all clients share into a pool of four; return it and the next hash constant."""
    seed = [(run_seed >> shift) & _WORD for shift in range(0, max(run_seed.bit_length(), 1), 32)]
    entropy = [*seed, *[0] * (4 - len(seed)), purpose_word(purpose)]
    constant = _INIT_A
    pool: list[int] = []

    def hashed(value: int) -> int:
        nonlocal constant
        value ^= constant
        constant = constant * _MULT_A & _WORD
        value = value * constant & _WORD
        return value ^ value >> 16

    def mixed(x: int, y: int) -> int:
        result = (_MIX_L * x - _MIX_R * y) & _WORD
        return result ^ result >> 16

    pool = [hashed(word) for word in entropy[:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[4:]:
        pool = [mixed(each, hashed(word)) for each in pool]
    return tuple(pool), constant


def _words(common: tuple[int, ...], constant: int, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Mix the words of each client into the common pool and return its eight words of state `[8, C]`."""
    pool = np.array(common, dtype=np.uint32)[:, None]
    for column in columns:
        constants = _constants(constant, _MULT_A, 5)
        pool = np.uint32(_MIX_L) * pool - np.uint32(_MIX_R) * _hashed(column, constants)
        pool ^= pool >> _HALF
        constant = int(constants[-1])
    return _hashed(np.concatenate([pool, pool]), _constants(_INIT_B, _MULT_B, 9))


def _hashed(values: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Hash values, one row with each constant but the last."""
    values = (values ^ constants[:-1, None]) * constants[1:, None]
    values ^= values >> _HALF
    return values


@lru_cache(maxsize=64)
def _constants(first: int, factor: int, count: int) -> np.ndarray:
    """Return the constants that hashes use in turn, each `factor` times the one before."""
    found = [first]
    while len(found) < count:
        found.append(found[-1] * factor & _WORD)
    return np.array(found, dtype=np.uint32)
