"""Labeled points of samples: parts of prepared shapes, or masks beside pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pipeline.downstream.raw_data import coords, tables
from pipeline.ingest.prepared import Prepared
from pipeline.samples import pixel_coords
from pipeline.storage import Objects, open_objects
from schemas.base import Location
from schemas.probing import PartLabels

IGNORED = -1


@dataclass(frozen=True)
class Labeled:
    """Points of one sample."""

    coords: Float[Tensor, "p d"]
    classes: Int[Tensor, "p"]
    """Class number, `IGNORED` where it does not count."""


@dataclass(frozen=True)
class LabeledSamples:
    """Labeled samples by id; those without labels are not here."""

    samples: dict[str, Labeled]
    classes: tuple[str, ...]


def part_labels(prepared: Prepared, ids: Sequence[str], labels: PartLabels) -> LabeledSamples:
    """Surface points with the classes of the parts that they lie on."""
    url = prepared.location.url
    if prepared.meta.kind != "shapes" or "surface_part" not in prepared.form.names:
        raise ValueError(
            f"labels.kind: {url} holds {prepared.meta.kind} without parts; parts are of shapes "
            "from files with materials or named solids; for pictures see labels.masks"
        )
    names: dict[str, tuple[np.ndarray, list[str], Tensor]] = {}
    for table in _part_tables(prepared, set(ids)):
        for line in table:
            if line["surface_part"] is None or not line["part_names"]:
                continue
            part = np.frombuffer(line["surface_part"], "<u2")
            at = coords(line["surface_coords"], line["precision"])
            found = [class_of(name, labels) for name in line["part_names"]]
            names[line["sample_id"]] = part, found, at
    if not names:
        raise ValueError(
            f"{url}: none of the {len(ids)} samples has parts; they come from materials or named "
            "solids of .glb, .obj and .wrl files. Choose samples that have them with source.label"
        )
    kept = {name for _, found, _ in names.values() for name in found} - set(labels.ignore)
    classes = tuple(sorted(kept))
    number = {name: i for i, name in enumerate(classes)}
    samples = {}
    for sample, (part, found, at) in names.items():
        of_part = np.array([number.get(name, IGNORED) for name in found], np.int64)
        samples[sample] = Labeled(at, torch.from_numpy(of_part[part]))
    return LabeledSamples(samples, classes)


def _part_tables(prepared: Prepared, ids: set[str]):
    """Lines of prepared rows with parts; columns that some rows lack are read from the shards."""
    wanted = ["surface_coords", "surface_part", "part_names", "precision"]
    if set(prepared.meta.missing) & set(wanted):
        meta = prepared.meta.model_copy(
            update={"missing": tuple(set(prepared.meta.missing) - set(wanted))}
        )
        prepared = Prepared(prepared.location, meta)
    for table in tables(prepared, ids, wanted):
        yield table.to_pylist()


def class_of(part: str, labels: PartLabels) -> str:
    """The class of a part by its name."""
    if part in labels.names:
        return labels.names[part]
    for pattern, name in labels.names.items():
        if fnmatchcase(part, pattern):
            return name
    return re.sub(r"[\s._-]*\d+$", "", part) or part


def mask_labels(masks: Location, ids: Sequence[str], ignore: Sequence[str]) -> LabeledSamples:
    """Pixels with the numbers of masks; `cats/1.jpg` has the mask `cats/1.png`, a member of a file
    `cats.gz#7` the mask `cats.gz#7.png`."""
    objects = open_objects(masks)
    keys = {_stem(entry.key): entry.key for entry in objects.list("")}
    found = {}
    for sample in ids:
        key = keys.get(sample) or keys.get(_stem(sample))
        if key is not None:
            found[sample] = _mask(objects, key)
    if not found:
        raise ValueError(
            f"labels.masks: {masks.url} holds {len(keys)} files, none of them named as one of the "
            f"{len(ids)} samples, e.g. '{_stem(ids[0])}.png'"
        )
    values = sorted({int(v) for mask in found.values() for v in np.unique(mask)})
    classes = tuple(str(v) for v in values if str(v) not in ignore)
    number = {int(name): i for i, name in enumerate(classes)}
    samples = {}
    for sample, mask in found.items():
        flat = np.array([number.get(int(v), IGNORED) for v in values], np.int64)
        of_pixel = flat[np.searchsorted(values, mask.reshape(-1))]
        samples[sample] = Labeled(pixel_coords(*mask.shape), torch.from_numpy(of_pixel))
    return LabeledSamples(samples, classes)


def _stem(key: str) -> str:
    folder, _, name = key.rpartition("/")
    return f"{folder}/{name.rpartition('.')[0] or name}".lstrip("/")


def _mask(objects: Objects, key: str) -> np.ndarray:
    with Image.open(io.BytesIO(objects.get(key))) as image:
        values = np.asarray(image)
    if values.ndim != 2:
        raise ValueError(
            f"labels.masks: '{key}' has {values.shape[-1]} channels; a mask has one, whose values "
            "are class numbers (gray or palette)"
        )
    return values.astype(np.int64)
