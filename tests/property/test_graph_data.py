"""Lists of edges become rows of in-neighbours as sets of neighbours would have it, whatever the list."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.base import DataError
from trainers.data.graphs.edges import in_neighbours

NUM_VERTICES = 7
PAIRS = st.lists(st.tuples(st.integers(0, NUM_VERTICES - 1), st.integers(0, NUM_VERTICES - 1)), max_size=30)


def expected(pairs: list[tuple[int, int]], undirected: bool) -> list[list[int]]:
    neighbours: list[set[int]] = [set() for _ in range(NUM_VERTICES)]
    for src, dst in pairs:
        if src != dst:
            neighbours[dst].add(src)
            if undirected:
                neighbours[src].add(dst)
    return [sorted(found) for found in neighbours]


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.booleans())
def test_rows_are_the_sets_of_in_neighbours_and_notes_count_what_was_left_out(pairs, undirected) -> None:
    src, dst = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    proper = [pair for pair in pairs if pair[0] != pair[1]]
    loops, repeated = len(pairs) - len(proper), len(proper) - len(set(proper))
    try:
        rows = in_neighbours("g", src, dst, NUM_VERTICES, undirected=undirected, duplicates="drop")
    except DataError as error:
        assert "has no edges" in str(error) and not proper
        return
    found = [rows.indices[start:stop].tolist() for start, stop in zip(rows.indptr, rows.indptr[1:], strict=False)]
    assert found == expected(pairs, undirected)
    told = [int(note.split()[0]) for note in rows.notes]
    assert told == [count for count in (loops, repeated) if count]


@settings(max_examples=25, deadline=None)
@given(PAIRS.filter(lambda pairs: any(src != dst for src, dst in pairs)), st.booleans(), st.randoms())
def test_rows_do_not_depend_on_the_order_of_the_list(pairs, undirected, random) -> None:
    shuffled = [*pairs]
    random.shuffle(shuffled)
    made = [
        in_neighbours("g", *np.array(listed).T, NUM_VERTICES, undirected=undirected, duplicates="drop")
        for listed in (pairs, shuffled)
    ]
    assert np.array_equal(made[0].indptr, made[1].indptr) and np.array_equal(made[0].indices, made[1].indices)


@settings(max_examples=25, deadline=None)
@given(PAIRS)
def test_repeated_edges_are_refused_exactly_when_there_are_some(pairs) -> None:
    proper = [pair for pair in pairs if pair[0] != pair[1]]
    src, dst = (np.array([pair[side] for pair in proper], np.int64) for side in (0, 1))
    try:
        in_neighbours("g", src, dst, NUM_VERTICES, undirected=True)
        refused = ""
    except DataError as error:
        refused = str(error)
    assert ("repeats" in refused) == (len(set(proper)) < len(proper))
