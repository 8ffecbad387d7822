"""What several stages need: the prepared dataset of a run, its method, this process's memory."""

from __future__ import annotations

import resource
from typing import Any

import pyarrow as pa

from pipeline import methods
from pipeline.ingest.prepared import Prepared, open_prepared
from schemas.run import AudioIngest, EquationIngest, ImageIngest, Run, ShapeIngest, VideoIngest
from schemas.samples import GRIDS, POINT_SETS, FormSpec, PreparedMeta


def prepared_of(run: Run) -> Prepared:
    """The finished prepared dataset of a run."""
    return open_prepared(run.prepared_location)


def row_count(run: Run, meta: PreparedMeta) -> int:
    """Prepared rows that the run takes."""
    return meta.rows if run.limit is None else min(run.limit, meta.rows)


def build_method(run: Run, prepared: Prepared) -> Any:
    """The method of a run, built for the form its prepared samples have."""
    from pipeline.samples import form_of

    form = form_of(prepared.rows(0, min(4, prepared.meta.rows)), prepared.meta.kind)
    return method_for(run, form)


def method_for(run: Run, form: FormSpec) -> Any:
    """The method of a run, built for a form; ValueError where it needs what the form lacks."""
    from pipeline.samples import require

    config = methods.configure(run.method.name, run.method.preset, run.method.settings())
    method = methods.build(run.method.name, config, form)
    for size in sizes_of(method):
        try:
            require(form, size)
        except ValueError as error:
            raise ValueError(f"{run.method.name}: {error}") from None
    whole = [size for size in sizes_of(method, fitting=True) if size.voxels or size.views]
    if run.fit.context != "all" and whole:
        raise ValueError(
            f"{run.method.name}: fits from voxels or views, which show the whole sample; "
            f"fit.context: {run.fit.context} is of points and pixels"
        )
    return method


def refuse_unfit(run: Run) -> None:
    """Raises ValueError, before a sample is read, where the keys of ingest already tell that the
    method cannot use what they make."""
    form = best_form(run)
    if form is None:
        return
    method = method_for(run, form)
    asked = getattr(run.ingest, "resolution", None)
    least = least_picture(method)
    if asked is not None and least is not None:
        high, wide = (asked, asked) if isinstance(asked, int) else asked
        if high < least[0] or wide < least[1]:
            raise ValueError(
                f"ingest.resolution: pictures of {high} x {wide} pixels; {too_small(run, least)}"
            )


def best_form(run: Run) -> FormSpec | None:
    """The form that the keys of ingest make of files that hold all that files may hold."""
    ingest, kind = run.ingest, run.dataset.kind
    if isinstance(ingest, ImageIngest):
        channels = {"rgb": 3, "gray": 1}.get(ingest.color)
        return channels and FormSpec(kind=kind, channels=channels, dims=2)
    if isinstance(ingest, AudioIngest):
        mono = ingest.channels == "mono"
        return FormSpec(kind=kind, channels=1, dims=1) if mono else None
    if isinstance(ingest, VideoIngest):
        return FormSpec(kind=kind, channels=3 if ingest.color == "rgb" else 1, dims=3)
    if isinstance(ingest, EquationIngest):
        waves = ingest.equation == "wave"
        return FormSpec(
            kind=kind,
            equation=ingest.equation,
            dims=ingest.dimension + waves,
            channels=1 if waves else 2,
        )
    common = {
        "kind": kind,
        "dims": 3,
        "color": True,
        "sets": tuple(name for name in POINT_SETS if getattr(ingest, name)),
    }
    if isinstance(ingest, ShapeIngest):
        return FormSpec(
            **common,
            signed=ingest.sign != "none",
            distances=True,
            normals=True,
            voxels=ingest.voxels,
            views=ingest.views,
            view_size=ingest.view_size if ingest.views else 0,
        )
    return FormSpec(
        **common,
        distances=bool(ingest.near or ingest.uniform),
        normals=ingest.normals != "none",
    )


def sizes_of(method: Any, *, fitting: bool = False) -> list[Any]:
    """What a method draws of a sample: in its phases (`fitting`: not those of training), its inner
    loop, its encoder."""
    parts = [*method.fit, getattr(method, "inner", None), method]
    parts += [] if fitting else method.train
    return [part.size for part in parts if hasattr(part, "size")]


def refused(run: Run, method: Any, table: pa.Table) -> dict[int, str]:
    """Why the method cannot take prepared samples, by position in the table."""
    kind = run.dataset.kind
    if kind not in GRIDS:
        return {}
    found: dict[int, str] = {}
    key = "ingest.channels: mono" if kind == "audio" else "ingest.color to rgb or gray"
    wanted = method.field.form.channels
    for i, channels in enumerate(table["channels"].to_pylist()):
        if channels != wanted:
            found[i] = f"has {channels} channels, the first samples {wanted}; set {key}"
    least = least_picture(method)
    if least is not None:
        sides = zip(table["height"].to_pylist(), table["width"].to_pylist())
        for i, (height, width) in enumerate(sides):
            if height < least[0] or width < least[1]:
                found[i] = f"has {height} x {width} pixels; {too_small(run, least)}"
    return found


def least_picture(method: Any) -> tuple[int, int] | None:
    """Fewest rows and columns of a picture that a method takes; None where any will do."""
    sizes = [size.least for size in sizes_of(method) if size.picture and size.least != (1, 1)]
    return tuple(max(of) for of in zip(*sizes)) if sizes else None


def too_small(run: Run, least: tuple[int, int]) -> str:
    name = run.method.name
    return (
        f"{name} with these keys needs {least[0]} x {least[1]}: take larger pictures, or other "
        f"keys (`fieldmill methods {name}` tells them)"
    )


def may_refuse(run: Run, method: Any) -> bool:
    """Whether `refused` can refuse samples of this run."""
    ingest = run.ingest
    kept = "keep" in (getattr(ingest, "color", ""), getattr(ingest, "channels", ""))
    return kept or least_picture(method) is not None


def take_rows(prepared: Prepared, rows: list[int]) -> pa.Table:
    """Any ascending rows of a prepared dataset, read as consecutive ranges."""
    parts, start = [], 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            parts.append(prepared.rows(rows[start], rows[i - 1] + 1))
            start = i
    return pa.concat_tables(parts)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
