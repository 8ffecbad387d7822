"""Finishing a store: root columns, index, consolidated metadata, and last the final record."""

from __future__ import annotations

import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Objects
from pipeline.store import keys, layout
from pipeline.store.create import load_numbered_plan, put_all, shared_hashes
from pipeline.store.progress import progress
from pipeline.store.records import Commit, FinalRecord, latest_final, read_commit, sha256
from schemas.store import USABLE, Plan, RowStatus

LEFTOVER_SECONDS = 3600
"""Hidden files of interrupted local writes are removed once they are this old."""


def finalize(objects: Objects, plan: Plan, *, force: bool = False) -> FinalRecord:
    """Writes everything that makes the units one store; needs every unit published.

    Does nothing if nothing changed since the last final record.

    Args:
        objects: The store.
        plan: Its newest plan.
        force: Write columns, index and metadata again even if nothing changed (repair).

    Raises:
        RuntimeError: Units are missing, or a record is damaged.
    """
    plan_now, number = load_numbered_plan(objects)
    if plan_now != plan:
        raise RuntimeError(f"{objects.location.url} has another plan by now; run again")
    state = progress(objects, plan)
    if not state.complete:
        raise RuntimeError(
            f"{objects.location.url} is not complete: {len(state.to_fit)} of {plan.units} units "
            f"are to be fitted (first: {[unit for unit, _ in state.to_fit[:5]]}), "
            f"{len(state.to_publish)} to be published; run the same command again"
        )
    commits = read_commits(objects, state.published)
    last, free = latest_final(objects)
    digests = {unit: commit.digest for unit, commit in commits.items()}
    if last is not None and not force and (last.plan, last.commits) == (number, digests):
        return last
    table = layout.column_table(plan, {unit: c.columns for unit, c in commits.items()})
    index = parquet(index_table(table))
    nodes = layout.metadata(plan)
    written = column_chunks(plan, table, nodes)
    put_all(objects, written)
    objects.put(keys.index_key(free), index)
    objects.put(keys.INDEX, index)
    objects.put(keys.FAILURES, parquet(failure_table(table)))
    put_all(objects, nodes)
    objects.delete([entry.key for entry in objects.list(keys.STAGING)])
    hashes = {key: (len(data), sha256(data)) for key, data in {**written, **nodes}.items()}
    hashes[keys.INDEX] = (len(index), sha256(index))
    for commit in commits.values():
        hashes |= {each.key: (each.size, each.sha256) for each in commit.objects}
    statuses = Counter(table["status"].to_pylist())
    record = FinalRecord(
        number=free,
        plan=number,
        units=state.published,
        commits=digests,
        objects={**hashes, **shared_hashes(objects)},
        rows={RowStatus(s).name.lower(): n for s, n in sorted(statuses.items())},
    )
    if not objects.create(keys.final_key(free), record.encode()):
        raise RuntimeError(f"{objects.location.url} was finalized by another process; run again")
    objects.tidy(LEFTOVER_SECONDS)
    return record


def read_commits(objects: Objects, published: dict[int, int]) -> dict[int, Commit]:
    """The commit records of published units, read side by side."""
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda item: read_commit(objects, *item), published.items())
        commits = dict(zip(published, found))
    broken = [unit for unit, commit in commits.items() if commit is None]
    if broken:
        raise RuntimeError(
            f"{objects.location.url}: the commit records of units {broken[:10]} are damaged or "
            "missing; 'repair' fits these units again"
        )
    return commits


def column_chunks(plan: Plan, table: pa.Table, nodes: dict[str, bytes]) -> dict[str, bytes]:
    """Chunk objects of the root columns."""
    chunks = {}
    for column in layout.root_columns(plan):
        values = layout.column_values(column, table[column.name])
        encoded = layout.encode_array(nodes[f"{column.name}/zarr.json"], values)
        chunks |= {f"{column.name}/{key}": data for key, data in encoded.items()}
    return chunks


def index_table(columns: pa.Table) -> pa.Table:
    """The index: one line a row that holds a sample, with its row number."""
    numbered = columns.add_column(0, "row", pa.array(np.arange(columns.num_rows), pa.int64()))
    return numbered.filter(pc.not_equal(numbered["status"], int(RowStatus.ABSENT)))


def failure_table(columns: pa.Table) -> pa.Table:
    """Rows that are there but not usable, with their reasons."""
    index = index_table(columns)
    usable = pc.is_in(index["status"], pa.array([int(s) for s in USABLE], pa.uint8()))
    names = ["row", "sample_id", "label", "split", "status", "code", "message", "steps", "loss"]
    return index.filter(pc.invert(usable)).select(names)


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def store_hash(objects: Objects) -> str:
    """The hash of a finished store: equal for equal arrays, metadata and index."""
    record, _ = latest_final(objects)
    if record is None:
        raise RuntimeError(f"{objects.location.url} has no final record: it is not finished")
    return record.hash
