"""Prompts in tables: CSV, TSV such as PartiPrompts, and Parquet."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, TextIO

from DeepCache.prompts.rows import PROMPT_NAMES, Row
from DeepCache.text import shown

_CSV_HINT = "Enclose a value with a comma, a line break or double quotes in double quotes, and double the quotes in it"
_TSV_HINT = "A value cannot contain a tab or a line break"
_BATCH = 1024
_BUFFER = 2**16


def csv_rows(text: TextIO) -> Iterator[Row]:
    """The rows of comma-separated values; a row with a wrong number of values is one with an error."""
    return _rows(csv.reader(text, strict=True), _CSV_HINT, unquote=False)


def tsv_rows(text: TextIO) -> Iterator[Row]:
    """The rows of tab-separated values; a row with a wrong number of values is one with an error.

    As in PartiPrompts, double quotes are ordinary characters. Only a value that a spreadsheet has enclosed in them,
    with every double quote inside doubled, loses them.
    """
    return _rows(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True), _TSV_HINT, unquote=True)


def parquet_rows(file: BinaryIO) -> Iterator[Row]:
    """The rows of a Parquet file. Only columns of text, numbers, booleans and nulls are read."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError('reading a .parquet file requires pyarrow: pip install "DeepCache[batch]"') from error

    try:
        # With pre_buffer, all values of a column in a row group, often the whole file, are read at once.
        with ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            names = _parquet_names(table.schema_arrow)
            number = 0
            for batch in table.iter_batches(_BATCH, columns=list(names), use_threads=False):
                pairs = zip(batch.schema, batch.columns, strict=True)
                columns = {names[field.name]: column for field, column in pairs if field.name in names}
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(f"row {number}", columns, index)
    except (ArrowException, UnicodeDecodeError) as error:
        raise _damaged(error) from error
    except OSError as error:
        # pyarrow raises a plain OSError for damaged files; one of the system has a number or another type.
        if type(error) is not OSError or error.errno is not None:
            raise
        raise _damaged(error) from error


def _rows(reader: Any, hint: str, unquote: bool) -> Iterator[Row]:
    names: list[str] = []
    while True:
        # The first line of a row that spans several.
        place = f"line {reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{place} cannot be split into values ({error}). {hint}") from error
        if unquote:
            values = [_unquoted(value) for value in values]
        if not names and values:
            names = _column_names(f"the header in {place}", values)
        elif values and len(values) != len(names):
            yield Row(place, {}, f"{place} must have {len(names)} values, one per column, got {len(values)}. {hint}")
        elif values:
            yield Row(place, dict(zip(names, values, strict=True)))


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return value


def _column_names(place: str, columns: Sequence[str], described: Sequence[str] | None = None) -> list[str]:
    """The names of columns in lower case, one of which must be that of the prompt, and none of which must be twice."""
    names = [column.strip().lower() for column in columns]
    if not set(PROMPT_NAMES) & set(names):
        found = shown(list(columns if described is None else described))
        raise ValueError(f"{place} must have a column of text named prompt, caption or text, got {found}")
    # Spreadsheets leave several columns without a name; these are ignored.
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"{place} has the column {shown(twice[0])} twice")
    return names


def _parquet_names(schema: Any) -> dict[str, str]:
    """The columns to read, and their names in the rows."""
    from pyarrow import types

    texts = [types.is_string, types.is_large_string, types.is_string_view]
    kinds = [*texts, types.is_integer, types.is_floating, types.is_boolean, types.is_null]
    columns = []
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        if any(belongs(kind) for belongs in kinds):
            columns.append(field.name)
    described = [f"{field.name}: {field.type}" for field in schema]
    return dict(zip(columns, _column_names("the table", columns, described), strict=True))


def _parquet_row(place: str, columns: dict[str, Any], index: int) -> Row:
    try:
        return Row(place, {name: column[index].as_py() for name, column in columns.items()})
    except UnicodeDecodeError:
        # Parquet does not check text when it is written.
        return Row(place, {}, error=f"{place} contains text that is not UTF-8")


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"it is not a Parquet file, or it is damaged: {' '.join(str(error).split())}")
