"""What a finished prior is told of: figures as JSON and text, contact sheets, paths, components."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.downstream.decoded import decodable
from pipeline.downstream.distribution import Prior
from pipeline.downstream.latents import interpolate
from pipeline.downstream.lesson import Lesson
from pipeline.downstream.quality import SETS, Quality, fitting_rows, measure
from pipeline.downstream.sample_store import fixed_rows, opened_rows, png
from pipeline.downstream.sheet import group_sheet, picture_of, pictures_of
from pipeline.downstream.statistics import principal_components
from pipeline.evaluate.opened import open_store
from schemas.base import identity

SIDE = 64
"""Pixels of a picture on a sheet."""
SHOWN = 16
"""Pictures of a group."""
PATHS, STEPS = 3, 8
"""Paths between held-out rows, and pictures on each."""
COMPONENTS = 64


def write_report(
    lesson: Lesson, prior: Prior, told: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures the prior, draws its sheets, and keeps all of it below the job's store."""
    quality = measure(lesson, prior, told)
    rows, _ = fitting_rows(lesson)
    shape = rows.flatten(1).shape
    components = json.loads(principal_components(rows).note(COMPONENTS))
    report = {
        "keys": _keys(lesson),
        "name": lesson.job.name,
        "method": lesson.job.method.name,
        "array": lesson.space.array,
        "row_shape": list(lesson.space.shape),
        "classes": list(lesson.space.classes[: lesson.classes]),
        "rows": len(lesson.dataset),
        "quality": quality.note(),
        "principal_components": {**components, "rows": shape[0], "entries": shape[1]},
        "training": lesson.files.done(),
    }
    if decodable(lesson.parent):
        for name, image in _sheets(lesson, quality):
            lesson.files.put(name, png(image))
            told(f"wrote {place(lesson, name)}")
    lesson.files.put("report.json", json.dumps(_plain(report), indent=1).encode())
    return report


def read_report(lesson: Lesson) -> dict[str, Any] | None:
    """The report of a finished job, if it is that of its present keys."""
    data = lesson.files.get("report.json")
    report = None if data is None else json.loads(data)
    return report if report is not None and report["keys"] == _keys(lesson) else None


def _keys(lesson: Lesson) -> str:
    """What decides a report besides what decides the samples."""
    options = lesson.job.evaluate.model_dump(mode="json")
    return identity({"samples": lesson.job.sample_identity(lesson.source_hash), "options": options})


def place(lesson: Lesson, name: str) -> str:
    """Where a file of the report is."""
    return f"{lesson.job.store.url.rstrip('/')}/{lesson.files.prefix}/{name}"


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _sheets(lesson: Lesson, quality: Quality) -> Iterator[tuple[str, Any]]:
    job, array = lesson.job, lesson.space.array
    fixed = fixed_rows(lesson.parent, array, lesson.dataset.selection.rows)

    def pictures(values: torch.Tensor) -> list[Any]:
        opened = opened_rows(lesson.parent, array, values.numpy(), fixed)
        return [picture_of(opened, i, SIDE) for i in range(len(values))]

    groups = {}
    if "held-out" in quality.pictures:
        groups["real: fits that were held out"] = pictures(quality.pictures["held-out"][:SHOWN])
    groups[f"samples of the prior ({job.method.name})"] = pictures_of(
        open_store(job.store), SHOWN, SIDE
    )
    if "gaussian" in quality.pictures:
        normal = pictures(quality.pictures["gaussian"][:SHOWN])
        groups["samples of a normal distribution with full covariance"] = normal
    yield "sheet.png", group_sheet(groups, SIDE, job.name)
    values = quality.pictures.get("held-out")
    if values is not None and len(values) >= 2 * PATHS:
        forth, back = lesson.normalization.forth, lesson.normalization.back
        ends = forth(values[: 2 * PATHS])
        paths = interpolate(ends[:PATHS], ends[PATHS:], STEPS, spherical=True)
        shown = {
            f"path {i + 1}: from one held-out row to another": pictures(back(path))
            for i, path in enumerate(paths)
        }
        yield "paths.png", group_sheet(shown, SIDE, job.name, columns=STEPS)


def report_tables(report: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """For each space its name, a header, and a line for each measure."""
    for space, table in report["quality"]["table"].items():
        sets = [name for name in SETS if name in table]
        names = dict.fromkeys(name for of in table.values() for name in of)
        lines = [[name, *(_shown(table[s].get(name)) for s in sets)] for name in names]
        yield space, ["measure", *sets], lines


def _shown(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
