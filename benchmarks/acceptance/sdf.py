"""A sine network of signed distance for each shape, against one that cannot oscillate."""

from __future__ import annotations

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import held_out_iou, prepared

DATA = "sample:shapes (mugs, tables, chairs, bottles, bolts), one of each class"
METRIC = "IoU at held-out points uniform in the box"
CONTROL = "the frequencies of the sines: factors 1 instead of 20 and 30"
CLAIM = "sine layers fit signed distances with detail (SIREN sec. 4.2)"
SETTINGS = {"steps": 200, "points": 768}
SLOW = {"omega_first": 1.0, "omega_hidden": 1.0}


def run(seed: int) -> Figures:
    from pipeline import methods
    from pipeline.fitting import fit_rows
    from pipeline.samples import load_samples

    table = prepared("shapes", near=4096, uniform=2048, surface=16, held_out=1024)
    samples = load_samples(table.take(list(range(seed % 12, 60, 12))), "shapes")

    def ious(settings):
        config = methods.configure("sdf", settings={**SETTINGS, **settings})
        method = methods.build("sdf", config, samples.form)
        rows = fit_rows(method, {}, samples, seed=seed).rows
        others = {name: value.roll(1, 0) for name, value in rows.items()}
        return [float(held_out_iou(method, {}, r, samples).mean()) for r in (rows, others)]

    ours, others = ious({})
    return Figures(ours=ours, control=ious(SLOW)[0], also={"another shape's": others})


def check(figures: Figures) -> None:
    assert figures.ours >= 0.85, "shapes are not fitted between the points that were seen"
    assert figures.ours >= figures.control + 0.1, "the frequencies do not matter"
    assert figures.also["another shape's"] < 0.5, "any network does"
