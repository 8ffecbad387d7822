"""The demo: three runs on real photographs and procedural shapes, through Ray, and a picture."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from jobs import text
from jobs.driver import Driver
from jobs.run import STAGES, execute, summary_lines
from jobs.units import stopping
from pipeline.ingest.photographs import make_crops
from pipeline.ingest.procedural import make_shapes
from schemas.run import Run

SHAPES = {
    "dataset": {"kind": "shapes"},
    "ingest": {
        "near": 16_384,
        "uniform": 8_192,
        "surface": 16_384,
        "held_out": 2_048,
        "unit_objects": 5,
    },
    "evaluate": {"resolution": 64, "points": 10_000, "rows": 8},
}
RUNS: dict[str, dict[str, Any]] = {
    "photos-siren": {
        "dataset": {"kind": "images"},
        "method": {"name": "siren", "target_psnr": 36},
    },
    "shapes-deepsdf": {
        **SHAPES,
        "method": {"name": "deepsdf", "train_steps": 900, "fit_steps": 200},
    },
    "shapes-sdf": {**SHAPES, "method": {"name": "sdf"}, "limit": 8},
}
SHEETS = {"photos-siren": 8, "shapes-deepsdf": 8, "shapes-sdf": 4}
"""Samples of each run on the contact sheet."""


def do_demo(arguments: argparse.Namespace) -> int:
    """Makes the data, runs the runs, prints their tables, draws the sheet."""
    started = time.monotonic()
    out = Path(arguments.out).absolute()
    data = {"images": out / "data" / "photos", "shapes": out / "data" / "shapes"}
    make_crops(data["images"])
    make_shapes(data["shapes"], per_class=5)
    runs = [demo_run(name, keys, data, out) for name, keys in RUNS.items()]
    with stopping() as stop:
        first = Driver(runs[0], stop)
        try:
            for run in runs:
                text.say(f"--- {run.name}: {run.method.name} on {run.dataset.url}")
                driver = Driver(run, stop, connected=first.connected)
                summary = execute(driver, STAGES)
                first.connected = driver.connected
                for line in summary_lines(run, driver.figures, summary):
                    text.say(line)
        finally:
            first.disconnect()
    sheet = out / "sheet.png"
    draw_sheet(runs, sheet)
    text.say()
    text.say(f"done in {text.duration(time.monotonic() - started)}; look at")
    text.say(f"  {sheet}")
    for run in runs:
        text.say(f"  {run.store.url}")
    text.say("next: fieldmill verify STORE; fieldmill export STORE --sample ID --to shape.glb")
    return 0


def demo_run(name: str, keys: dict[str, Any], data: dict[str, Path], out: Path) -> Run:
    """A run file of the demo; both runs on shapes share one prepared dataset."""
    kind = keys["dataset"]["kind"]
    return Run.model_validate(
        {
            **keys,
            "name": name,
            "dataset": {"url": str(data[kind]), "kind": kind},
            "store": str(out / f"{name}.zarr"),
            "prepared": str(out / f"{kind}.prepared"),
        }
    )


def draw_sheet(runs: list[Run], path: Path) -> None:
    """Inputs beside reconstructions of every run, one sheet below the other."""
    import torch
    from PIL import Image

    from pipeline.evaluate.contact_sheet import contact_sheet
    from pipeline.evaluate.opened import open_store
    from pipeline.stages import prepared_line

    torch.set_num_threads(1)  # small batches: threads would wait more than work
    sheets = []
    for run in runs:
        store = open_store(run.store)
        sheets.append(
            contact_sheet(
                store,
                lambda row, run=run: prepared_line(run, row),
                count=SHEETS[run.name],
                columns=4,
            )
        )
    whole = Image.new(
        "RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), (255, 255, 255)
    )
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    whole.save(path)
