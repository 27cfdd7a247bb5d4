"""Parquet files as tables: found on local disk or in an object store, and read batch by batch in a fixed order.

Every failure names the one file it happened in. What is left out: what the columns mean (`columns.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from trainers.data.base import DataError
from trainers.data.columns import Place

_SUFFIXES = (".parquet", ".parq", ".pq")
_BATCH_ROWS = 4096
_GCS_RETRY_S = 60


class Source(NamedTuple):
    """The files of one table, found but not yet read. `stamps` tells whether they are still the same."""

    path: str
    table: ds.FileSystemDataset
    stamps: list[list[Any]]


def find(address: str, setting: str = "data.path") -> Source:
    """List the Parquet files of an address, in order of name, and read the first one's schema.

    Args:
        setting: the field that holds the address, for messages.

    Raises:
        DataError: when there are none, or they cannot be read.
    """
    path = _without_secrets(address)
    try:
        if "://" in address:
            filesystem, root = fs.FileSystem.from_uri(_bounded(address))
        else:
            filesystem, root = fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
        info = filesystem.get_file_info(root)
        if info.type == fs.FileType.NotFound:
            raise DataError(
                f"{path} does not exist", f"{setting} is a file, a folder or an address such as s3://bucket/x"
            )
        infos = [info]
        if info.type == fs.FileType.Directory:
            found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
            infos = sorted((file for file in found if _is_part(file, root)), key=lambda file: file.path)
            if not infos:
                some = ", ".join(file.base_name for file in found[:5]) or "nothing"
                raise DataError(
                    f"{path} holds no Parquet file, but {some}", f"file names end in {', '.join(_SUFFIXES)}"
                )
        # Without these, Arrow holds a whole file's buffers at once, and a table must not need to fit into memory.
        format = ds.ParquetFileFormat(pre_buffer=False, use_buffered_stream=True, page_checksum_verification=True)
        first = _reading(infos[0].path, lambda: format.inspect(infos[0].path, filesystem))
        partitioning = ds.HivePartitioning.discover(infer_dictionary=False)
        table = _reading(
            path,
            lambda: ds.FileSystemDatasetFactory(
                filesystem,
                [file.path for file in infos],
                format,
                ds.FileSystemFactoryOptions(partition_base_dir=root, partitioning=partitioning),
            ).finish(),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"cannot read {path}: {str(error).replace(address, path)}",
            "check the address, and the credentials of an object store",
        ) from error
    stamps = [[filesystem.type_name, file.path, file.size, file.mtime_ns] for file in infos]
    if len(first) == 0:
        raise DataError(f"{infos[0].path} has no columns", "give a Parquet file with features and labels")
    return Source(path, table, stamps)


def _without_secrets(address: str) -> str:
    """Leave out user, password and query, which may hold keys: addresses appear in messages and reports."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}" if separator else address


def _bounded(address: str) -> str:
    """Bound the retries of Google's client, which otherwise tries for a quarter of an hour."""
    if not address.startswith(("gs://", "gcs://")) or "retry_limit_seconds" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}retry_limit_seconds={_GCS_RETRY_S}"


def _is_part(file: fs.FileInfo, root: str) -> bool:
    inner = file.path[len(root) :].lstrip("/")
    hidden = any(part.startswith((".", "_")) for part in inner.split("/"))
    return file.type == fs.FileType.File and not hidden and file.base_name.lower().endswith(_SUFFIXES)


def _reading(file: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is no whole Parquet file: {error}", "write or copy it again") from error


def num_rows(source: Source, needed: str = "both training and test examples are needed") -> int:
    """Return a table's number of rows, from the files' footers alone.

    Args:
        needed: said when there are none.

    Raises:
        DataError: when there are none, or a file is cut off.
    """
    counts = [_reading(part.path, part.count_rows) for part in source.table.get_fragments()]
    if sum(counts) == 0:
        raise DataError(f"{source.path} has no rows", needed)
    return sum(counts)


def require_same_types(source: Source, main: Source, names: Sequence[str]) -> None:
    """Refuse a second table whose columns are not of the first one's types."""
    for name in names:
        found, expected = source.table.schema.field(name).type, main.table.schema.field(name).type
        if found != expected:
            raise DataError(
                f"column {name!r} is {found} in {source.path} but {expected} in {main.path}",
                "write both tables with the same types",
            )


def batches(source: Source, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, Place]]:
    """Yield a table's batches in order, each with the file and row it begins at."""
    for part in source.table.get_fragments():
        first = 0
        try:
            for batch in part.to_batches(
                schema=source.table.schema,
                columns=list(dict.fromkeys(columns)),
                batch_size=_BATCH_ROWS,
                batch_readahead=4,
            ):
                yield batch, Place(part.path, first)
                first += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"cannot read {part.path}: {error}", "write or copy the file again") from error
