"""Files that hold many samples: how many there are, and the members of a range, in stored order."""

from __future__ import annotations

import gzip
import io
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.archives import tar_members
from pipeline.ingest.members import Member
from pipeline.ingest.sources import Source
from pipeline.storage import StorageError
from schemas.samples import Code

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class Probe:
    """What a container holds."""

    members: int | None = None
    """None: only known after reading (tar)."""
    size: int = 0
    """Bytes, where the listing does not say."""
    short: str = ""
    """What is missing at the end of a file that is cut short."""
    status: str = ""
    """`ignored` or `rejected` when it holds nothing of use."""
    code: str = ""
    message: str = ""


def probe_container(
    resolve: Callable[[], tuple[Source, str]], kind: str, columns: dict[str, str]
) -> Probe:
    """Number of members of a container, from its header or footer alone.

    Args:
        resolve: Gives the source and the key; may fail like reading.
    """
    if kind == "tar":
        return Probe()
    try:
        source, key = resolve()
        if kind == "parquet":
            with source.open(key) as file:
                return _probe_parquet(pq.ParquetFile(file), columns)
        if kind == "npy":
            header = _npy_header(io.BytesIO(source.read_range(key, 0, 4096)))
            whole = _is_picture(header.shape) or header.fortran
            held = _size_of(source, key) - header.offset
            return _probe_stack(header.shape, header.item, held, whole)
        if kind == "npz":
            with source.open(key) as file:
                return _probe_npz(file)
        if LABELS_FILE.search(key):
            return Probe(status="ignored", message="labels of an IDX file")
        shape, dtype, offset = _idx_header(_idx_start(source, key))
        held = _size_of(source, key)
        if key.endswith(".gz"):  # the trailer has the size, modulo 2^32
            held = int.from_bytes(source.read_range(key, held - 4, 4), "little")
        return _probe_stack(shape, np.dtype(dtype).itemsize, held - offset, len(shape) == 2)
    except StorageError:
        raise
    except FileNotFoundError:
        message = "there is no such file"
        return Probe(status="rejected", code=Code.INPUT_MISSING.value, message=message)
    except PermissionError as error:
        message = error.strerror or str(error)
        return Probe(status="rejected", code=Code.INPUT_MISSING.value, message=message)
    except Exception as error:  # whatever a format's library raises for broken bytes
        text = f"{type(error).__name__}: {error}"[:300]
        return Probe(status="rejected", code=Code.DECODE.value, message=text)


def _probe_stack(shape: tuple[int, ...], item: int, held: int, whole: bool) -> Probe:
    """Members of an uncompressed stack with `held` bytes; a cut one has fewer than it claims."""
    claimed, size = _stack_length(shape), math.prod(shape) * item
    if not size:
        raise ValueError(f"an array of shape {shape} holds nothing")
    if held >= size:
        return Probe(claimed, size)
    words = f"the file is cut short: {held} bytes of {size}"
    there = held // (size // claimed)
    if whole or there < 1:
        raise ValueError(words)
    return Probe(there, size, words)


def _size_of(source: Source, key: str) -> int:
    found = source.stat(key)
    if found is None:
        raise FileNotFoundError(key)
    return found.size if found.size >= 0 else sys.maxsize


def container_members(
    source: Source, key: str, kind: str, start: int, stop: int, prefix: str, options: Any
) -> Iterator[Member]:
    """Members [start, stop) of a container (all of a tar).

    Args:
        prefix: What member ids begin with: the container's own sample id.
        options: The `Dataset`, for the kind of sample and the names of columns.
    """
    if kind == "tar":
        return tar_members(source, key, prefix, options.kind)
    if kind == "parquet":
        return _parquet_members(source, key, start, stop, prefix, options.columns)
    if kind == "npy":
        return _npy_members(source, key, start, stop, prefix)
    if kind == "npz":
        return _npz_members(source, key, start, stop, prefix)
    return _idx_members(source, key, start, stop, prefix)


# --- Parquet ---------------------------------------------------------------------------------


def _probe_parquet(file: pq.ParquetFile, columns: dict[str, str]) -> Probe:
    schema, image = file.schema_arrow, columns.get("image", "image")
    if image not in schema.names:
        return Probe(status="ignored", message=f"a Parquet file without a column '{image}'")
    kind = schema.field(image).type
    struct = pa.types.is_struct(kind) and any(f.name == "bytes" for f in kind)
    if not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        message = f"column '{image}' is {kind}, neither bytes nor a struct with bytes"
        return Probe(status="rejected", code=Code.DECODE.value, message=message)
    groups = range(file.num_row_groups)
    if file.metadata.num_rows != sum(file.metadata.row_group(i).num_rows for i in groups):
        raise ValueError("the row groups do not add up to the number of rows")
    return Probe(file.metadata.num_rows)


def _parquet_members(
    source: Source, key: str, start: int, stop: int, prefix: str, columns: dict[str, str]
) -> Iterator[Member]:
    names = {name: columns.get(name, name) for name in ("image", "id", "label", "split")}
    with source.open(key) as handle:
        file = pq.ParquetFile(handle)
        there = [n for n in names.values() if n in file.schema_arrow.names]
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:
                at = first
                for batch in file.iter_batches(64, row_groups=[group], columns=there):
                    if at < stop and at + len(batch) > start:
                        low = max(start - at, 0)
                        part = batch.slice(low, min(stop - at, len(batch)) - low)
                        yield from _parquet_rows(part, at + low, prefix, names, columns)
                    at += len(batch)
            first += rows


def _parquet_rows(
    batch: pa.RecordBatch, first: int, prefix: str, names: dict[str, str], columns: dict[str, str]
) -> Iterator[Member]:
    for number, row in enumerate(batch.to_pylist(), first):
        image = row[names["image"]]
        data = image.get("bytes") if isinstance(image, dict) else image
        own_id = row.get(names["id"]) if "id" in columns else None
        label, split = row.get(names["label"]), row.get(names["split"])
        sample_id = f"{prefix}#{number:06d}" if own_id is None else str(own_id)
        if data is None:
            yield Member(sample_id, problem=(Code.EMPTY, "no image bytes in this line"))
            continue
        name = sample_id.rpartition("/")[2]
        yield Member(
            sample_id,
            {name: data},
            name,
            label=None if label is None else str(label),
            split=split if split in ("train", "val", "test") else None,
        )


# --- NPY and NPZ -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int

    @property
    def item(self) -> int:
        return self.dtype.itemsize


def _npy_header(start: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0 if version[0] == 1 else _read_header_2
    shape, fortran, dtype = read(start)
    if dtype.hasobject:
        raise ValueError("an array of Python objects cannot be read")
    return _Header(shape, fortran, dtype, start.tell())


def _read_header_2(file: BinaryIO) -> tuple:
    return np.lib.format.read_array_header_2_0(file)


def _is_picture(shape: tuple[int, ...]) -> bool:
    """[h, w] and [h, w, 1|3|4] are one picture; anything with more axes is a stack."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4)


def _stack_length(shape: tuple[int, ...]) -> int:
    if _is_picture(shape):
        return 1
    if len(shape) in (3, 4):
        return shape[0]
    raise ValueError(f"an array of shape {shape} is neither a picture nor a stack of pictures")


def _npy_members(source: Source, key: str, start: int, stop: int, prefix: str) -> Iterator[Member]:
    header = _npy_header(io.BytesIO(source.read_range(key, 0, 4096)))
    if header.fortran or _is_picture(header.shape):
        array = np.load(io.BytesIO(source.read(key)[0]), allow_pickle=False)
        stack = array[None] if _is_picture(array.shape) else array[start:stop]
    else:
        shape = header.shape[1:]
        step = math.prod(shape) * header.item
        data = source.read_range(key, header.offset + start * step, (stop - start) * step)
        if len(data) < (stop - start) * step:
            raise ValueError(f"{key} ends before picture {stop}")
        stack = np.frombuffer(data, header.dtype).reshape(stop - start, *shape)
    single = _is_picture(header.shape)
    for i, picture in enumerate(stack):
        yield _array_member(prefix if single else f"{prefix}#{start + i:06d}", picture, None)


def _npz_members(source: Source, key: str, start: int, stop: int, prefix: str) -> Iterator[Member]:
    arrays, labels = _npz(source, key, _etag(source, key))
    first = 0
    for name, array in arrays.items():
        count = _stack_length(array.shape)
        names = labels.get(name)
        stack = array[None] if _is_picture(array.shape) else array
        for i in range(max(start - first, 0), min(stop - first, count)):
            single = _is_picture(array.shape)
            sample_id = f"{prefix}::{name}" + ("" if single else f"#{i:06d}")
            yield _array_member(sample_id, stack[i], None if names is None else str(names[i]))
        first += count


def _probe_npz(file: BinaryIO) -> Probe:
    """The stacks of an NPZ file, by the headers of its arrays."""
    shapes = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                header = _npy_header(member)
            if math.prod(header.shape) * header.item > info.file_size:
                raise ValueError(f"array '{info.filename}' is cut short")
            shapes[info.filename.removesuffix(".npy")] = header
    names = _pictures({name: header.shape for name, header in shapes.items()})
    if not names:
        raise ValueError(f"no array of pictures (it has {', '.join(shapes) or 'none'})")
    size = sum(math.prod(shapes[name].shape) * shapes[name].item for name in names)
    return Probe(sum(_stack_length(shapes[name].shape) for name in names), size)


def _pictures(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The arrays of an NPZ file that hold pictures: stacks, or (without any) single ones."""
    stacks = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
    return stacks or [name for name, shape in shapes.items() if len(shape) == 2]


@lru_cache(maxsize=1)
def _npz(source: Source, key: str, etag: str | None) -> tuple[dict, dict]:
    """Pictures by array name, and the labels of each (a vector of its length: y, labels, ...)."""
    with np.load(io.BytesIO(source.read(key)[0]), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    pictures = {name: arrays[name] for name in _pictures({n: a.shape for n, a in arrays.items()})}
    vectors = {name: a for name, a in arrays.items() if a.ndim == 1 or a.shape[1:] == (1,)}
    labels = {}
    for name, array in pictures.items():
        for other, vector in vectors.items():
            same_part = _part(other) == _part(name) or len(pictures) == 1
            if len(vector) == len(array) and same_part and array.ndim > 2:
                labels[name] = vector.reshape(-1)
    return pictures, labels


def _part(name: str) -> str:
    """`train` of x_train, y_train, train_images, ...: what pairs pictures with labels."""
    words = re.split(r"[_\-. ]", name.lower())
    return "".join(w for w in words if w in ("train", "test", "val", "valid"))


def _array_member(sample_id: str, picture: np.ndarray, label: str | None) -> Member:
    if picture.ndim == 3 and picture.shape[2] > 4 and picture.shape[0] in (1, 3, 4):
        picture = np.moveaxis(picture, 0, 2)  # channels first
    picture = np.ascontiguousarray(picture)
    return Member(
        sample_id,
        {"": picture.tobytes()},
        "",
        array=(picture.shape, picture.dtype.str),
        label=label,
    )


# --- IDX -------------------------------------------------------------------------------------

LABELS_FILE = re.compile(r"labels?[^/]*idx1|idx1[^/]*$")


def _idx_start(source: Source, key: str) -> bytes:
    data = source.read_range(key, 0, 4096)
    return zlib.decompressobj(31).decompress(data, 256) if key.endswith(".gz") else data


def _idx_header(data: bytes) -> tuple[tuple[int, ...], str, int]:
    """Shape, numpy dtype and offset of the values."""
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError("not an IDX file: its first bytes are " + data[:4].hex(" "))
    axes = data[3]
    offset = 4 + 4 * axes
    if len(data) < offset:
        raise ValueError("the IDX header is cut short")
    return tuple(int(n) for n in np.frombuffer(data[4:offset], ">u4")), IDX_TYPES[data[2]], offset


@lru_cache(maxsize=2)
def _idx_array(source: Source, key: str, etag: str | None) -> np.ndarray:
    data = source.read(key)[0]
    if key.endswith(".gz"):
        data = gzip.decompress(data)
    shape, dtype, offset = _idx_header(data)
    step = math.prod(shape[1:])
    there = min(shape[0], (len(data) - offset) // (step * np.dtype(dtype).itemsize))
    values = np.frombuffer(data, dtype, count=there * step, offset=offset)
    return values.reshape(there, *shape[1:])


def _idx_members(source: Source, key: str, start: int, stop: int, prefix: str) -> Iterator[Member]:
    array = _idx_array(source, key, _etag(source, key))
    stack = array[None] if array.ndim == 2 else array
    labels = _idx_labels(source, key, len(stack))
    for i in range(start, min(stop, len(stack))):
        label = None if labels is None else str(labels[i])
        yield _array_member(f"{prefix}#{i:06d}", stack[i], label)


def _idx_labels(source: Source, key: str, count: int) -> np.ndarray | None:
    """The labels file beside an images file: the same name with `labels` and `idx1`."""
    folder, slash, name = key.rpartition("/")
    other = re.sub(r"idx[2-9]", "idx1", name.replace("images", "labels"))
    for candidate in (other, other.removesuffix(".gz"), other + ".gz"):
        found = source.stat(folder + slash + candidate) if candidate != name else None
        if found is not None:
            labels = _idx_array(source, found.key, found.etag)
            return labels if labels.shape == (count,) else None
    return None


def _etag(source: Source, key: str) -> str | None:
    found = source.stat(key)
    if found is None:
        raise FileNotFoundError(f"there is no object '{key}'")
    return found.etag
