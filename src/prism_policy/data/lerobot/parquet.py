"""Parquet files as arrays. Only this file imports pyarrow; the extra `lerobot` brings it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prism_policy.errors import PrismError
from prism_policy.utils.text import listed, one_line, quoted

MOST_NUMBERS = 2**16
"""Of one vector."""


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise PrismError("LeRobot's datasets need pyarrow; run `pip install 'prism-policy[lerobot]'`") from error
    return pyarrow


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into one sentence that names the file."""
    pyarrow = _pyarrow()
    try:
        yield
    except FileNotFoundError as error:
        raise PrismError(f"{path} not found; get the whole dataset") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        why = one_line(str(error), 160)
        state = "is no readable Parquet file: it is damaged, cut short or still being written"
        raise PrismError(f"{path} {state} ({why}); wait for its writer or get it again") from error


class Table:
    """A Parquet file, of which only the rows and columns that are asked for are read. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Read what the file says of itself.

        Raises:
            PrismError: there is no readable Parquet file at this path, or no pyarrow.
        """
        self.path, self._lock = path, threading.Lock()
        self._held: dict[tuple[str, ...], tuple[range, Any]] = {}
        with _parquet_errors(path):
            self._file = _pyarrow().parquet.ParquetFile(path, page_checksum_verification=True)
            about = self._file.metadata
            self.rows: int = about.num_rows
            self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)
            self._ends = np.cumsum([about.row_group(i).num_rows for i in range(about.num_row_groups)])

    def require(self, keys: Sequence[str]) -> None:
        """Raise a PrismError where one of these columns is missing."""
        if missing := [key for key in keys if key not in self.columns]:
            raise PrismError(f"{self.path}: expected a column {quoted(missing[0])}; it has {listed(self.columns, 12)}")

    @cached_property
    def episode_index(self) -> np.ndarray:
        """Episode of each row, int64 (N,)."""
        return self.read({"episode_index": 1})["episode_index"]

    @cached_property
    def stretches(self) -> dict[int, tuple[int, int, int]]:
        """Episode -> its first row, its last one, and how many it has: a look-up for each would read all rows."""
        index = self.episode_index
        numbers, first, counts = np.unique(index, return_index=True, return_counts=True)
        last = len(index) - 1 - np.unique(index[::-1], return_index=True)[1]
        rows = zip(first.tolist(), last.tolist(), counts.tolist(), strict=True)
        return dict(zip(numbers.tolist(), rows, strict=True))

    def read(self, widths: Mapping[str, int], start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Columns of numbers: each (n,) where its width is 1 and has no lists, else (n, width).

        Raises:
            PrismError: a column is missing, holds something else, or lacks values.
        """
        table = self._slice(tuple(widths), start, self.rows if stop is None else stop)
        with _parquet_errors(self.path):
            return {key: self._numbers(table[key], key, width) for key, width in widths.items()}

    def objects(self, keys: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, list[Any]]:
        """Columns of texts, lists of texts, or images, as Python has them."""
        table = self._slice(tuple(keys), start, self.rows if stop is None else stop)
        with _parquet_errors(self.path):
            return {key: table[key].to_pylist() for key in keys}

    def _slice(self, keys: tuple[str, ...], start: int, stop: int) -> Any:
        """These rows; the row groups that hold them are kept for the next call with these keys."""
        self.require(keys)
        first, last = np.searchsorted(self._ends, [start, max(stop - 1, start)], "right").tolist()
        groups = range(first, min(last + 1, len(self._ends)))
        with self._lock, _parquet_errors(self.path):
            if keys not in self._held or self._held[keys][0] != groups:
                self._held[keys] = groups, self._file.read_row_groups(list(groups), columns=list(keys))
            offset = int(self._ends[first - 1]) if first else 0
            return self._held[keys][1].slice(start - offset, stop - start)

    def _numbers(self, column: Any, key: str, width: int) -> np.ndarray:
        types, where = _pyarrow().types, f"{self.path}: {key}"
        values, rows, nested = column.combine_chunks(), len(column), False
        while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
            if values.null_count:
                raise PrismError(f"{where}: expected {width} numbers in every row, got none in {values.null_count}")
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            if len(lengths) and (lengths != lengths[0]).any():
                row = int(np.flatnonzero(lengths != lengths[0])[0])
                raise PrismError(f"{where}: expected {width} numbers in every row, got {lengths[row]} in row {row}")
            values, nested = values.flatten(), True
        kind = values.type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise PrismError(f"{where}: expected numbers, got {one_line(kind, 60)}")
        if values.null_count and not types.is_floating(kind):
            raise PrismError(f"{where}: expected a number in every row, got none in {values.null_count}")
        array = values.to_numpy(zero_copy_only=False)
        if len(array) != rows * width:
            raise PrismError(f"{where}: expected {width} numbers in every row, got {len(array) / max(rows, 1):g}")
        return array.reshape(rows, width) if nested else array


Rows = np.ndarray | list[Any]
"""A column: numbers (n,) or (n, width); or texts, lists of texts, encoded images (bytes)."""


def write_table(path: Path, columns: Mapping[str, Rows], index: str = "") -> None:
    """Write a small table; `index` is the column that pandas takes for the index."""
    pyarrow = _pyarrow()
    table = pyarrow.table({key: _column(values) for key, values in columns.items()})
    if index:
        about = {
            "index_columns": [index],
            "columns": [
                {
                    "name": key,
                    "field_name": key,
                    "pandas_type": "unicode" if isinstance(values, list) else "int64",
                    "numpy_type": "object" if isinstance(values, list) else "int64",
                    "metadata": None,
                }
                for key, values in columns.items()
            ],
            "column_indexes": [],
            "pandas_version": "2.3.3",
        }
        table = table.replace_schema_metadata({"pandas": json.dumps(about)})
    pyarrow.parquet.write_table(table, path)


class TableWriter:
    """Writes a Parquet file, a row group a call."""

    def __init__(self, path: Path) -> None:
        """Begin the file with its first `write`."""
        self.path, self.bytes = path, 0
        self._writer: Any = None

    def write(self, columns: Mapping[str, Rows]) -> None:
        """Write rows; every call has the same columns."""
        pyarrow = _pyarrow()
        table = pyarrow.table({key: _column(values) for key, values in columns.items()})
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(
                self.path, table.schema, compression="snappy", write_page_checksum=True
            )
        self._writer.write_table(table)
        self.bytes += table.nbytes

    def close(self) -> None:
        """Write the file's end, without which it cannot be read."""
        if self._writer is not None:
            self._writer.close()


def _column(values: Rows) -> Any:
    pyarrow = _pyarrow()
    if isinstance(values, list):
        if values and isinstance(values[0], bytes):
            image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
            return pyarrow.array([{"bytes": one, "path": None} for one in values], image)
        return pyarrow.array(values)
    if values.ndim == 1:
        return pyarrow.array(values)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
