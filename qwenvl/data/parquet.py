"""Rows of parquet files, a few at a time and within limits: no file of strangers fills the memory or ends the run.

A column of one long value repeated (dictionary pages) unpacks to as many copies as there are rows, so the header of
each dictionary is read before the rows are: it says how many may be unpacked at once. Cells of a type that JSON has no
word for become text (dates, decimals) or are passed over.
"""

import contextlib
import datetime
import decimal
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.columns import NAMES_OF_TEXT
from qwenvl.data.shards import LARGEST
from qwenvl.files import atomic

AT_ONCE = 512
"""Rows that are unpacked together at most."""

BUDGET = 1 << 28
"""Bytes to which rows may unpack together at most."""

GROUP = 1 << 32
"""Bytes to which a row group, or a file of less than a `DENSITY`th of it, may unpack."""

DENSITY = 200
"""Bytes that one byte of a large column may unpack to: text comes to 20, a bomb to 1,000."""


class Damaged(NamedTuple):
    """Rows that cannot be read: `kind` is counted, `detail` is for the person who looks."""

    kind: str
    detail: str


def library() -> Any:
    """The module `pyarrow.parquet`; raises ValueError where pyarrow is not installed."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            "parquet files need the package pyarrow, which is not installed; pip install 'qwenvl[data]'."
        ) from None


def opened(path: Path) -> Any:
    """The open file (`pyarrow.parquet.ParquetFile`); raises ValueError where it is none."""
    reader = library()
    try:
        return reader.ParquetFile(path)
    except _failures(ValueError) as error:  # a name of a column that is no UTF-8, too
        raise ValueError(
            f"{path} cannot be read as parquet ({_short(error)}); get a fresh copy of it."
        ) from None


def read_rows(path: Path) -> Iterator[dict[str, Any] | Damaged]:
    """The rows of a file, in order, a few in memory; a damaged stretch is one `Damaged`, what follows it is read.

    Raises ValueError for a file that is no parquet at all.
    """
    size, most = 0, max(GROUP, DENSITY * path.stat().st_size)
    with opened(path) as file:
        for group in range(file.metadata.num_row_groups):
            try:
                for batch in batches(path, file, group):
                    for row in rows_of(batch):
                        size += _bytes_in(row)
                        if size > most:
                            yield Damaged("damaged parquet", f"it unpacks to more than {most:,} bytes")
                            return
                        yield row
            except _failures(ValueError) as error:
                yield Damaged("damaged parquet", _short(error))


def read_group(path: Path, group: int) -> Any:
    """A row group as a table of batches, for `row_of`. Raises ValueError for a damaged one, or one above `GROUP`."""
    found, size = [], 0
    with opened(path) as file:
        try:
            for batch in batches(path, file, group):
                found.append(batch)
                size += batch.nbytes
                if size > GROUP:
                    raise ValueError(f"row group {group} unpacks to more than {GROUP >> 30} GiB")
        except _failures(ValueError) as error:
            raise ValueError(f"{path} cannot be read ({_short(error)}); get a fresh copy of it.") from None
        return import_module("pyarrow").Table.from_batches(found, file.schema_arrow)


def row_of(table: Any, row: int) -> dict[str, Any]:
    """One row of a table, as `read_rows` gives it. Raises ValueError where there is none: the file has changed."""
    if row >= table.num_rows:
        raise ValueError(f"there is no row {row} among {table.num_rows}; the file has changed")
    return next(rows_of(table.slice(row, 1)))


def batches(path: Path, file: Any, group: int) -> Iterator[Any]:
    """Record batches of a row group that unpack to `BUDGET` bytes at most. Raises ValueError for a bomb."""
    facts = file.metadata.row_group(group)
    widest = 0
    with path.open("rb") as raw:
        for number in range(facts.num_columns):
            column = facts.column(number)
            packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
            if unpacked > BUDGET // 4 and unpacked > DENSITY * packed:
                raise ValueError(
                    f"the column {column.path_in_schema} unpacks from {packed:,} to {unpacked:,} bytes"
                )
            each = math.ceil(column.num_values / max(1, facts.num_rows))
            widest += each * _dictionary_bytes(raw, column)
    if widest > BUDGET:
        raise ValueError(f"a row of group {group} may unpack to {widest:,} bytes")
    yield from file.iter_batches(max(1, min(AT_ONCE, BUDGET // max(1, widest))), row_groups=[group])


_PAGE = re.compile(rb"\x15[\x80-\xff]*[\x00-\x7f]\x15([\x80-\xff]*[\x00-\x7f])")


def _dictionary_bytes(raw: Any, column: Any) -> int:
    """What the dictionary of a column unpacks to: the second number of its page's header (Thrift's compact form)."""
    if not column.has_dictionary_page or column.physical_type != "BYTE_ARRAY":
        return 0
    raw.seek(column.dictionary_page_offset or 0)
    found = _PAGE.match(raw.read(32))
    if found is None:
        return 0
    number = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[1]))
    return number >> 1  # zigzag


# === Cells ===


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch or table as values of JSON, and bytes; a cell that cannot be one is missing from its row."""
    if twice := [name for name, count in Counter(batch.schema.names).items() if count > 1]:
        raise ValueError(f"there are two columns `{twice[0]}`; rename one")
    simple = all(_is_simple(column.type) for column in batch.schema)
    texts = [each.name for each in batch.schema if _may_be_text(each)]
    for start in range(0, batch.num_rows, _SLICE):
        part = batch.slice(start, _SLICE)
        try:
            rows = part.to_pylist() if simple else None
        except _failures(ValueError, OverflowError, TypeError):
            rows = None
        for row in _cell_by_cell(part) if rows is None else rows:
            for name in texts:
                if isinstance(value := row.get(name), bytes):
                    with contextlib.suppress(UnicodeDecodeError):
                        row[name] = value.decode()
            yield row


def _may_be_text(column: Any) -> bool:
    """Whether a column of bytes holds captions: who writes parquet without Arrow's schema leaves them so."""
    return column.name.lower() in NAMES_OF_TEXT and "binary" in str(column.type)


_SLICE = 64
_SIMPLE = re.compile(r"(?:large_)?(?:string|binary)|u?int\d+|bool|float|double|halffloat|null")


def _is_simple(kind: Any) -> bool:
    """Whether every value of an Arrow type has a word in JSON, or is bytes."""
    if kind.num_fields:
        return str(kind).startswith(("struct<", "list<", "large_list<")) and all(
            _is_simple(kind.field(k).type) for k in range(kind.num_fields)
        )
    return _SIMPLE.fullmatch(str(kind)) is not None


def _cell_by_cell(part: Any) -> Iterator[dict[str, Any]]:
    columns = [part.column(k) for k in range(part.num_columns)]
    for row in range(part.num_rows):
        cells = ((name, _cell(column, row)) for name, column in zip(part.schema.names, columns, strict=True))
        yield {name: value for name, value in cells if value is not _ODD}


_ODD = object()


def _cell(column: Any, row: int) -> Any:
    try:
        return plain(column[row].as_py())
    except _failures(ValueError, OverflowError, TypeError):  # no UTF-8, a date beyond the year 9999
        return _ODD


def plain(value: Any) -> Any:
    """The value in words of JSON (bytes stay): dates as ISO text, decimals as numbers, what has no word as None."""
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, Sequence) else None


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a parquet file that appears only when it is complete."""
    table = import_module("pyarrow").Table.from_pylist(rows) if library() else None
    with atomic(path) as file:
        library().write_table(table, file)


def too_large(row: Mapping[str, Any]) -> bool:
    """Whether a cell of the row is above the limit."""
    return _bytes_in(row) > LARGEST and any(_bytes_in(value) > LARGEST for value in row.values())


def _bytes_in(value: Any) -> int:
    """Bytes and letters of a cell, or of a row of them."""
    if isinstance(value, str | bytes):
        return len(value)
    size = 0
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        kind = type(each)
        if kind is str or kind is bytes:
            size += len(each)
        elif kind is list or kind is dict:
            size += _bytes_in(each)
    return size


def _failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What pyarrow raises for a file that is damaged."""
    return OSError, import_module("pyarrow").ArrowException, *more


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
