"""A torus and some real meshes, twice: as raw data, and as exact distances that are held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from schemas.run import PointIngest, ShapeIngest
from schemas.samples import IDENTITY, form_schema

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.fields.bind import Tensors
    from pipeline.fitting.method import Method
    from pipeline.samples import Samples

TORUS = "torus.off"
"""Major radius 0.5, minor 0.2: the analytic shape of SAL's calibration."""
HELD_OUT = 16_384


def exact(names: tuple[str, ...]) -> Samples:
    """Held-out points of meshes with exact signed distances (and few others)."""
    ingest = ShapeIngest(
        near=1, uniform=1, surface=1, held_out=HELD_OUT, normalize="none", precision="float32"
    )
    return _samples("shapes", names, ingest)


def raw_shapes(names: tuple[str, ...], **settings: int) -> Samples:
    """Meshes as points near them and in the box with distances that have no sign."""
    ingest = ShapeIngest(sign="none", surface=1, held_out=0, normalize="none", **settings)
    return _samples("shapes", names, ingest)


def raw_clouds(names: tuple[str, ...], **settings: int) -> Samples:
    """Meshes as clouds with normals, and nothing else."""
    return _samples("points", names, PointIngest(held_out=0, normalize="none", **settings))


def mesh(name: str) -> bytes:
    """The torus, or `SET/FILE` of the sample sets, scaled into the unit sphere, as a PLY file."""
    import trimesh

    from pipeline.ingest import sample_sets

    if name == TORUS:
        made = trimesh.creation.torus(0.5, 0.2, major_sections=96, minor_sections=48)
    else:
        part, file = name.split("/", 1)
        found = trimesh.load(sample_sets.folder(part) / file, process=False)
        made = trimesh.Trimesh(found.vertices, found.faces, process=False)
        made.apply_translation(-made.bounds.mean(0))
        made.apply_scale(1 / 1.03 / np.linalg.norm(made.vertices, axis=1).max())
    return made.export(file_type="ply")


def _samples(kind: str, names: tuple[str, ...], ingest: ShapeIngest | PointIngest) -> Samples:
    from pipeline.ingest.clouds import decode_cloud
    from pipeline.ingest.meshes import decode_shape
    from pipeline.samples import load_samples

    decode, lines = (decode_shape if kind == "shapes" else decode_cloud), []
    for row, name in enumerate(names):
        key = name.rpartition(".")[0] + ".ply"
        line = {"row": row, "sample_id": name, "label": "", "split": "train"}
        lines.append(line | decode({key: mesh(name)}, key, ingest, name))
    form = form_schema(kind, ingest.model_dump())
    return load_samples(pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *form])), kind)


def quality(
    method: Method, shared: Tensors, rows: Tensors, held: Samples
) -> dict[str, Float[Tensor, "n"]]:
    """Of each row at held-out uniform points: IoU, mean |error| of the distance, and how far the
    gradient is from length 1."""
    import torch

    from pipeline.draw import Draw
    from pipeline.fields.bind import bind
    from pipeline.fields.derivatives import value_and_gradient
    from pipeline.fitting import bindable
    from pipeline.samples import Size

    method.model.eval()
    draw = Draw.of(held.keys, seed=0, stage="held-out")
    index = torch.arange(len(held))
    points = held.draw(index, "query", Size(pixels=0, uniform=HELD_OUT), draw).points
    values, slopes = [], []
    for part in points.coords.split(2048, 1):
        with torch.no_grad():
            bound = bind(method.model, bindable(method, shared, rows))
            value, slope = value_and_gradient(bound, part)
        values.append(value)
        slopes.append(slope)
    value, slope = torch.cat(values, 1), torch.cat(slopes, 1)
    inside, truth = value < 0, points.distance < 0
    return {
        "iou": (inside & truth).sum(1) / (inside | truth).sum(1).clamp(min=1),
        "l1": (value - points.distance).abs().mean(1),
        "eikonal": (slope.norm(dim=-1) - 1).abs().mean(1),
    }
