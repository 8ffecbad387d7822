"""Sample sets of meshes as prepared tables, and IoU of fields at held-out points."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from schemas.run import ShapeIngest
from schemas.samples import IDENTITY, form_schema

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.fields.bind import Tensors
    from pipeline.fitting.method import Method
    from pipeline.samples import Samples


@lru_cache(maxsize=4)
def prepared(name: str, **settings: Any) -> pa.Table:
    """The meshes of a `sample:` set as ingest prepares them, in order of their ids.

    `settings` are keys of ingest; few points keep this short.
    """
    from pipeline.ingest import sample_sets
    from pipeline.ingest.meshes import decode_shape

    ingest = ShapeIngest(**settings)
    folder, lines = sample_sets.folder(name), []
    for path in sorted(p for p in folder.rglob("*.*") if not p.name.startswith(".")):
        key = path.relative_to(folder).as_posix()
        line = {"row": len(lines), "sample_id": key, "label": path.parent.name, "split": "train"}
        lines.append(line | decode_shape({key: path.read_bytes()}, key, ingest, key))
    form = form_schema("shapes", ingest.model_dump())
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *form]))


def split(table: pa.Table, every: int) -> tuple[pa.Table, pa.Table]:
    """Known and new samples: of `every` rows that follow each other the last one is new."""
    new = [i for i in range(table.num_rows) if i % every == every - 1]
    known = [i for i in range(table.num_rows) if i % every != every - 1]
    return table.take(known), table.take(new)


def held_out_iou(
    method: Method, shared: Tensors, rows: Tensors, samples: Samples, *, level: float = 0.5
) -> Float[Tensor, "n"]:
    """IoU of the insides at the held-out points uniform in the box, one value a sample.

    A field of occupancy is inside above `level`, one of distance below 0.
    """
    import torch

    from pipeline.draw import Draw
    from pipeline.fields.bind import bind
    from pipeline.fitting.rows import bindable
    from pipeline.samples import Size

    method.model.eval()
    draw = Draw.of(samples.keys, seed=0, stage="held-out")
    count = min(samples.sets["held_uniform"].counts.tolist())
    size = Size(pixels=0, uniform=count)
    inside, found = [], []
    with torch.no_grad():
        for at in torch.arange(len(samples)).split(8):
            part = Draw(draw.keys[at], draw.step[at])
            points = samples.draw(at, "query", size, part).points
            own = {name: value[at] for name, value in rows.items()}
            values = method.read(bind(method.model, bindable(method, shared, own)), points.coords)
            inside.append(points.distance < 0)
            found.append(values["sdf"] < 0 if "sdf" in values else values["occupancy"] > level)
    inside, found = torch.cat(inside), torch.cat(found)
    return (inside & found).sum(1) / (inside | found).sum(1).clamp(min=1)
