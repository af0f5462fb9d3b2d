"""Prompts in Parquet, the tables that data sets are kept in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from DeepCache.prompts.rows import PROMPT_NAMES, Row, shown

__all__ = ["PARQUET_EXPECTED", "parquet_rows"]

PARQUET_EXPECTED = "write a table with a column prompt, caption or text that holds one prompt a row"

_BATCH = 1024
_BUFFER = 2**16


def parquet_rows(file: BinaryIO) -> Iterator[Row]:
    """The rows of a Parquet file, a few at a time. Upper and lower case are the same in the names of columns.

    Only columns of text, whole numbers, floats and truth values are read, and those that are null throughout; lists,
    dates, images and the like are left out.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is no Parquet or is damaged, or its columns name no prompt or a name twice.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError('a .parquet file takes pyarrow: pip install "DeepCache[batch]"') from error

    try:
        # As it is set otherwise it reads all of a column's values in a row group at once, often the whole file.
        with ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            names = _names(table.schema_arrow)
            number = 0
            for batch in table.iter_batches(_BATCH, columns=list(names), use_threads=False):
                columns = [
                    (names[field.name], column)
                    for field, column in zip(batch.schema, batch.columns, strict=True)
                    if field.name in names
                ]
                for index in range(batch.num_rows):
                    number += 1
                    yield _row(f"row {number}", columns, index)
    except (ArrowException, UnicodeDecodeError) as error:
        raise _damaged(error) from error
    except OSError as error:
        # Of files that are damaged too pyarrow says so; only what comes from the system has a number or a type.
        if type(error) is not OSError or error.errno is not None:
            raise
        raise _damaged(error) from error


def _names(schema: Any) -> dict[str, str]:
    """The columns to read, and what their values are called in the rows."""
    names = [(field.name, field.name.strip().lower()) for field in schema if _is_one_value(field.type)]
    if not set(PROMPT_NAMES) & {name for _, name in names}:
        columns = [f"{field.name}: {field.type}" for field in schema]
        raise ValueError(f"it must have a column prompt, caption or text that holds text, got {shown(columns)}")
    twice = [name for name, count in Counter(name for _, name in names).items() if name and count > 1]
    if twice:
        raise ValueError(f"it has the column {shown(twice[0])} twice")
    return dict(names)


def _is_one_value(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        belongs(kind)
        for belongs in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_integer,
            types.is_floating,
            types.is_boolean,
            types.is_null,
        )
    )


def _row(place: str, columns: list[tuple[str, Any]], index: int) -> Row:
    try:
        return Row(place, {name: column[index].as_py() for name, column in columns})
    except UnicodeDecodeError:
        # Parquet does not look into text when it is written.
        return Row(place, {}, error=f"{place} has text that is not UTF-8")


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"it is no Parquet file, or a damaged one: {' '.join(str(error).split())}")
