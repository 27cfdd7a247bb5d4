"""The table of `federated_parquet.yaml`: readings of 12 sensors, each with an offset and a habit of its own.

    python -m examples.federated_parquet [runs/readings.parquet]

A row is a reading: whose it is, six numbers, and what the machine beside it did. Any tool that writes Parquet will do
for a table of yours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STATES = ("idle", "running", "failing")


def write(path: Path, num_sensors: int = 12, seed: int = 0) -> None:
    """Write the table."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(len(STATES), 6))
    parts = []
    for sensor in range(num_sensors):
        number = int(rng.integers(40, 160))
        state = rng.choice(len(STATES), number, p=rng.dirichlet([2.0, 4.0, 1.0]))
        values = centers[state] + rng.normal(size=6) * 0.3 + rng.normal(size=(number, 6)) * 0.6
        columns = {f"channel_{place}": values[:, place].astype(np.float32) for place in range(6)}
        names = pa.array([STATES[one] for one in state])
        parts.append(pa.table({"sensor": pa.array([f"sensor-{sensor:02}"] * number), **columns, "state": names}))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(parts), path)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/readings.parquet"))
