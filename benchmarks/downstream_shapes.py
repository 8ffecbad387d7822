"""KiCad parts as DeepSDF codes: what can be read off them, priors and a GAN on them.

    python -m benchmarks.downstream_shapes --folder 3DMODELS --work FOLDER --write

3DMODELS holds KiCad's VRML files by class (`Battery.3dshapes/*.wrl`); 40 of each of ten classes are
taken. The codes come from `fieldmill run`, figures from `fieldmill probe`, `prior` and `gan`; all
of it is kept below --work, so that a second run goes on where the first ended. --write keeps the
tables in benchmarks/results/downstream_shapes.md and pictures in docs/kicad_prior.png.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.downstream_jobs import (
    DOCS,
    PROBED,
    RESULTS,
    Bench,
    markdown,
    probe_rows,
    spanned_rows,
)
from pipeline.downstream.lesson import Lesson
from pipeline.downstream.prior import load_prior
from pipeline.downstream.quality import measure
from pipeline.downstream.report import read_report
from pipeline.downstream.sample_store import opened_rows
from pipeline.downstream.sheet import group_sheet, pictures_of
from pipeline.evaluate.opened import open_store

CLASSES = ("Battery", "Button_Switch_THT", "Capacitor_THT", "Connector_Dsub", "Diode_THT",
           "Inductor_THT", "LED_THT", "Package_TO_SOT_THT", "TerminalBlock_Phoenix",
           "Varistor")  # fmt: skip
EACH = 40
RUN: dict[str, Any] = {
    "ingest": {"near": 4096, "uniform": 2048, "surface": 2048, "held_out": 1024},
    "method": {"name": "deepsdf", "code": 64, "batch": 32, "points": 160, "train_steps": 1500},
    "evaluate": {"rows": 40, "resolution": 48, "points": 2000},
}
NETWORK = {"width": 128, "depth": 3, "dropout": 0.1, "conditional": False}
TRAIN = {"steps": 800, "batch": 128, "rate": 2e-3, "ema": 0.99, "previews": 0}
FLOW = {"name": "rectified_flow", **NETWORK}
PRIORS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "rectified flow": ("rectified_flow", FLOW, TRAIN, 3),
    "the same, start: none": ("plain", {**FLOW, "start": "none"}, TRAIN, 2),
    "mixture of 8": ("gaussian", {"name": "gaussian", "mixture": 8, "conditional": False}, {}, 3),
    "GAN": (
        "wgan_gp",
        {"name": "wgan_gp", "conditional": False},
        {"steps": 1500, "batch": 64, "rate": 1e-3, "clip": None, "ema": 0.99, "previews": 0},
        1,
    ),
}
"""Name of its store, method, training, seeds."""
DECODED = ("one_nn", "cov", "mmd", "density", "coverage", "empty")
CODES = ("one_nn", "density", "coverage", "rarest", "nearest_learned")


def choose_files(source: Path, target: Path) -> None:
    """Copies `EACH` files of each class, by the hash of their names."""
    for name in CLASSES:
        files = sorted(
            (source / f"{name}.3dshapes").glob("*.wrl"),
            key=lambda path: hashlib.sha256(path.name.encode()).hexdigest(),
        )
        if not files:
            raise SystemExit(f"{source}/{name}.3dshapes holds no .wrl files")
        (target / name).mkdir(parents=True, exist_ok=True)
        for path in files[:EACH]:
            if not (target / name / path.name).exists():
                shutil.copy(path, target / name / path.name)


def sheet(lessons: dict[str, Lesson], side: int = 72, count: int = 10) -> None:
    """Held-out shapes and samples."""

    def pictures(lesson: Lesson, codes: torch.Tensor) -> list[Any]:
        opened = opened_rows(lesson.parent, lesson.space.array, codes.numpy())
        return pictures_of(opened, count, side)

    groups = {}
    for name, lesson in lessons.items():
        found = measure(_codes_only(lesson), load_prior(lesson)).pictures
        if not groups:
            groups["held out: shapes decoded from their codes"] = pictures(
                lesson, found["held-out"]
            )
            groups["samples of a Gaussian with full covariance"] = pictures(
                lesson, found["gaussian"]
            )
        groups[f"samples: {name.replace('_', ' ')}"] = pictures(lesson, found["prior"])
    group_sheet(groups, side, "KiCad parts", columns=count).save(DOCS / "kicad_prior.png")


def _codes_only(lesson: Lesson) -> Lesson:
    options = lesson.job.evaluate.model_copy(update={"decoded": False})
    job = lesson.job.model_copy(update={"evaluate": options})
    return Lesson(job, lesson.dataset, lesson.space, lesson.source_hash, lesson.classes)


def prior(
    bench: Bench, stem: str, method: dict[str, Any], train: dict[str, Any], seed: int
) -> Lesson:
    """A prior, or the GAN, with its samples and report."""
    name = f"kicad-{stem}" + (f"-{seed}" if seed else "")
    return bench.prior(
        name, "kicad-codes", method, sample={"count": 64},
        evaluate={"rows": 100, "resolution": 40}, **({"train": train} if train else {}),
        **({"seed": seed} if seed else {}),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="KiCad's folders of models")
    parser.add_argument("--work", type=Path, required=True, help="where stores are kept")
    parser.add_argument("--write", action="store_true", help="keep tables and pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.work)
    choose_files(options.folder, bench.work / "kicad10")
    dataset = {"url": str(bench.work / "kicad10"), "kind": "shapes"}
    url = bench.fit("kicad-codes", {"dataset": dataset, **RUN})
    probe = bench.probe("kicad-codes", shuffles=1)
    seeded = {
        name: [prior(bench, stem, method, train, seed) for seed in range(seeds)]
        for name, (stem, method, train, seeds) in PRIORS.items()
    }
    lessons = {name: of_seeds[0] for name, of_seeds in seeded.items()}
    reports = {n: [read_report(lesson)["quality"] for lesson in x] for n, x in seeded.items()}
    tables = {
        space: {name: [r["table"][space] for r in found] for name, found in reports.items()}
        for space in ("code", "decoded")
    }
    store = open_store(url)
    iou = np.nanmedian(store.index["iou_uniform"].to_numpy())
    known = len(lessons["GAN"].dataset)
    words = f"""# KiCad parts as DeepSDF codes

`python -m benchmarks.downstream_shapes --folder 3DMODELS --work FOLDER --write`, {time.strftime("%Y-%m-%d")};
{len(store)} shapes of {len(CLASSES)} classes, codes of 64 numbers by `fieldmill run` (IoU on uniform
points, median: {iou:.2f}); {known} learned from, the others held out.

## What can be read off

{markdown(PROBED, probe_rows("codes", probe))}

## Priors

{reports["GAN"][0]["rows"]} samples beside as many held-out shapes; Chamfer distances of 512 surface points. Mean (least to
greatest) of three seeds of prior and draw, of `start: none` two, of the GAN one. `start: none`: the flow learns all of the
velocity, not what to add to that of the normal distribution of the codes.

{markdown(["samples of", *DECODED], spanned_rows(tables["decoded"], DECODED))}

The codes themselves:

{markdown(["samples of", *CODES], spanned_rows(tables["code"], CODES))}
"""  # noqa: E501
    print(words)
    if options.write:
        (RESULTS / "downstream_shapes.md").write_text(words)
        sheet(lessons)


if __name__ == "__main__":
    main()
