"""Tables of recorded behaviour: what is read, and what is said of those that cannot be used."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.data import DataError
from trainers.data.traces import load_trace

GOOD = {"client": ["b", "a", "b"], "start_s": [5, 0, 1], "end_s": [6.5, 10.0, 2.0], "speed": [2.0, 0.5, 2.0]}


def write(folder, **changes):
    table = {name: column for name, column in (GOOD | changes).items() if column is not None}
    pq.write_table(pa.table(table), folder / "trace.parquet")
    return str(folder / "trace.parquet")


def test_rows_in_any_order_become_intervals_of_devices_in_sorted_order(tmp_path) -> None:
    read = load_trace(write(tmp_path), speeds=True)
    assert read.devices.tolist() == [0, 1] and read.offsets.tolist() == [0, 1, 3]
    assert (read.start_s.tolist(), read.end_s.tolist()) == ([0.0, 1.0, 5.0], [10.0, 2.0, 6.5])
    assert read.speed.tolist() == [0.5, 2.0]


def test_a_table_without_speeds_does_for_availability(tmp_path) -> None:
    assert load_trace(write(tmp_path, speed=None)).speed is None
    assert load_trace(write(tmp_path, client=[12, 3, 12])).offsets.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("changes", "speeds", "message"),
    [
        ({"speed": None}, True, r"has no column 'speed'; it has client, start_s, end_s"),
        ({"client": None, "end_s": None}, False, r"has no column 'client', 'end_s'"),
        ({"end_s": [6.5, 10.0, 1.0]}, False, r"row 2 of .*trace.parquet, client b: end_s is 1.0, expected above 1.0"),
        ({"start_s": [5, -1, 1]}, False, r"row 1 of .*, client a: start_s is -1.0, expected at least 0"),
        ({"speed": [2.0, 0.5, 3.0]}, True, r"row 2 of .*, client b: speed is 3.0, but 2.0 in another row"),
        ({"start_s": [5, None, 1]}, False, r"column 'start_s' has 1 null"),
        ({"start_s": ["x", "y", "z"]}, False, r"column 'start_s' of .* is string"),
        ({"client": [["a"], ["b"], ["c"]]}, False, r"column 'client' of .* is list"),
    ],
)
def test_a_table_that_cannot_be_used_says_where_and_why(tmp_path, changes, speeds, message) -> None:
    with pytest.raises(DataError, match=message):
        load_trace(write(tmp_path, **changes), speeds=speeds)


def test_a_missing_or_empty_table_says_what_a_trace_is(tmp_path) -> None:
    with pytest.raises(DataError, match=r"does not exist\n  a trace is a Parquet file"):
        load_trace(str(tmp_path / "none.parquet"))
    pq.write_table(pa.table(GOOD).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"has no rows\n  a trace is a Parquet file"):
        load_trace(str(tmp_path / "empty.parquet"))
