"""Reader of a finished prepared dataset: rows by number, the manifest, what it is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.shards import Piece, read_batches
from pipeline.storage import Objects, open_objects
from schemas.base import Location
from schemas.samples import IDENTITY, PreparedMeta, form_schema

SIDECAR = pa.schema([*IDENTITY, pa.field("index", pa.int32(), False)])
"""`rows/<shard>.arrow`: the accepted samples of a shard, and where in the shard they are."""
CACHED_SIDECARS = 256


def sidecar_key(name: str) -> str:
    return f"rows/{name}.arrow"


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset. Opening reads one small object; rows are read as they are asked for."""

    location: Location
    meta: PreparedMeta

    @property
    def objects(self) -> Objects:
        return open_objects(self.location)

    @property
    def form(self) -> pa.Schema:
        """Columns of the shards."""
        return form_schema(self.meta.kind, self.meta.ingest)

    @property
    def schema(self) -> pa.Schema:
        """Columns of `rows`: identity, then those of the form that no row lacks (`missing`).

        So a row never has normals or colors beside some neighbours and none beside others.
        """
        kept = (column for column in self.form if column.name not in self.meta.missing)
        return pa.schema([*IDENTITY, *kept])

    def rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows [start, stop): identity columns and those of the form (`columns`: only these).

        Reads the sidecars of the shards concerned, and of each shard one byte range; without
        columns of the form, the sidecars only.
        """
        if not 0 <= start <= stop <= self.meta.rows:
            raise ValueError(
                f"rows {start}:{stop} are not in 0:{self.meta.rows} of {self.location.url}"
            )
        form = self.form
        offered = [name for name in form.names if name not in self.meta.missing]
        wanted = offered if columns is None else [c for c in columns if c in offered]
        unknown = set(columns or ()) - set(self.schema.names)
        if unknown:
            raise ValueError(f"a prepared dataset of {self.meta.kind} has no column {min(unknown)}")
        schema = pa.schema([*IDENTITY, *(form.field(name) for name in wanted)])
        objects, parts = self.objects, []
        firsts = [first for _, first, _ in self.meta.shards]
        for name, first, count in self.meta.shards[max(bisect_right(firsts, start) - 1, 0) :]:
            if first >= stop:
                break
            if first + count <= start:
                continue
            table, piece = _sidecar(self.location, name)
            mine = table.slice(max(start - first, 0), min(stop, first + count) - max(start, first))
            known = mine.drop_columns(["index"])
            if wanted:
                index = mine["index"].to_pylist()
                batches = read_batches(objects, piece, form, index[0], index[-1] + 1)
                body = pa.Table.from_batches(batches, form).select(wanted)
                if len(body) != len(index):
                    body = body.take(pa.array([i - index[0] for i in index]))
                known = pa.Table.from_arrays([*known.columns, *body.columns], schema=schema)
            parts.append(known)
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def manifest(self) -> Iterator[pa.RecordBatch]:
        """Every sample that was listed, with what became of it."""
        objects = self.objects
        for key in sorted(entry.key for entry in objects.list("manifest/")):
            yield from pq.ParquetFile(pa.BufferReader(objects.get(key))).iter_batches()

    def failures(self) -> pa.Table:
        """The rejected samples: MANIFEST lines."""
        return pq.read_table(pa.BufferReader(self.objects.get("failures.parquet")))


def open_prepared(location: Location | str) -> Prepared:
    """Opens a finished prepared dataset.

    Raises:
        FileNotFoundError: there is none, or its ingest has not been folded.
    """
    if isinstance(location, str):
        location = Location(url=location)
    try:
        data = open_objects(location).get("prepared.json")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{location.url} holds no finished prepared dataset; run the ingest stage"
        ) from None
    return Prepared(location, PreparedMeta.model_validate_json(data))


@lru_cache(maxsize=CACHED_SIDECARS)
def _sidecar(location: Location, name: str) -> tuple[pa.Table, Piece]:
    """The sidecar of a shard; never rewritten, so it may be kept."""
    table = pa.ipc.open_stream(open_objects(location).get(sidecar_key(name))).read_all()
    piece = Piece.model_validate_json(table.schema.metadata[b"piece"])
    return table.replace_schema_metadata(None), piece
