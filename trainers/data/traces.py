"""Recorded client behaviour: a Parquet table of when devices were available and how fast they were.

Columns: `client` (whole numbers or text; devices count in sorted order), `start_s` and `end_s` (virtual seconds of an
interval of availability) and optionally `speed` (above 0, alike in all rows of a client). Rows may be in any order;
further columns are passed over. What they mean is in `strategies.federated.behaviour.traces`.
"""

from __future__ import annotations

import numpy as np

from strategies.federated.behaviour.traces import Trace, TraceError, trace
from trainers.data.base import DataError
from trainers.data.columns import Codes, Features, check_columns
from trainers.data.tables import batches, find, num_rows

_HINT = "a trace is a Parquet file, folder or address with columns client, start_s, end_s and, for speeds, speed"


def load_trace(path: str, *, speeds: bool = False) -> Trace:
    """Read a table of intervals.

    Args:
        path: a file, a folder, or an object-store address such as `s3://bucket/traces/`.
        speeds: whether the column `speed` is needed; when it is not, it is not read.

    Raises:
        DataError: when files are missing or damaged, or a column is missing or unfit, naming the first bad row.
    """
    wanted = ["start_s", "end_s", *(["speed"] if speeds else [])]
    try:
        source = find(path)
        num_rows(source)
    except DataError as error:
        raise DataError(error.message, _HINT) from error
    schema = source.table.schema
    missing = [name for name in ("client", *wanted) if name not in schema.names]
    if missing:
        raise DataError(
            f"{source.path} has no column {', '.join(map(repr, missing))}; it has {', '.join(schema.names)}", _HINT
        )
    check_columns(source.path, schema, {"trace": ["client", *wanted]})
    numbers, codes = Features(source.path, schema, wanted), Codes(source.path, schema, "client")
    values, clients = [], []
    for batch, place in batches(source, ["client", *wanted]):
        values.append(numbers.read(batch, place))
        clients.append(codes.read(batch, place))
    order, names = codes.finish()
    table, owners = np.concatenate(values), order[np.concatenate(clients)]
    try:
        return trace(owners, table[:, 0], table[:, 1], table[:, 2] if speeds else None)
    except TraceError as error:
        client = names[owners[error.row]]
        raise DataError(f"row {error.row} of {source.path}, client {client}: {error.reason}", _HINT) from error
