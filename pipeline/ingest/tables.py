"""Tables of URIs: one line a sample, in CSV or Parquet, streamed; and tables of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.ingest.kinds import suffix
from pipeline.ingest.sources import Source

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table of URIs."""

    sample_id: str
    uri: str
    label: str | None
    split: str | None


def read_table(source: Source, key: str, columns: dict[str, str]) -> Iterator[Line]:
    """Lines of a table with a column `uri` and, if there, `id`, `label`, `split`.

    Raises:
        ValueError: a column is missing, a line has no URI, or a split is not one of three.
    """
    names = {name: columns.get(name, name) for name in ("uri", "id", "label", "split")}
    for number, row in enumerate(read_rows(source, key, names, needed=("uri",))):
        uri, split = row["uri"], row["split"]
        if not uri:
            raise ValueError(f"{key}, line {number + 1} of the data: '{names['uri']}' is empty")
        if split is not None and split not in SPLITS:
            raise ValueError(
                f"{key}, line {number + 1} of the data: split '{split}' is not one of "
                f"{', '.join(SPLITS)}"
            )
        yield Line(row["id"] or uri, uri, row["label"], split)


def read_rows(
    source: Source, key: str, names: dict[str, str], needed: tuple[str, ...]
) -> Iterator[dict[str, str | None]]:
    """The columns `names` of a CSV or Parquet file as text; absent or empty values are None."""
    with source.open(key) as file:
        rows = _parquet_rows(file, names) if suffix(key) == ".parquet" else _csv_rows(file)
        for number, row in enumerate(rows):
            missing = [names[name] for name in needed if names[name] not in row]
            if number == 0 and missing:
                raise ValueError(
                    f"{key} has no column '{missing[0]}' (it has {', '.join(map(str, row))}); "
                    "name it under 'columns'"
                )
            yield {name: _text(row.get(column)) for name, column in names.items()}


def _csv_rows(file: Any) -> Iterator[dict[str, Any]]:
    data = file if isinstance(file, io.IOBase) else io.BytesIO(bytes(file.read()))
    with io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as text:
        yield from csv.DictReader(text)


def _parquet_rows(file: Any, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    table = pq.ParquetFile(file)
    there = [name for name in names.values() if name in table.schema_arrow.names]
    if not there:
        yield dict.fromkeys(table.schema_arrow.names)
        return
    for batch in table.iter_batches(4096, columns=there):
        yield from batch.to_pylist()


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
