"""DeepSDF: codes of unseen shapes with the decoder frozen, from a whole shape or from one view."""

from __future__ import annotations

from benchmarks.acceptance import Figures
from benchmarks.acceptance._shapes import held_out_iou, prepared, split

DATA = "sample:shapes (mugs, tables, chairs, bottles, bolts), 60, 10 of them held out"
METRIC = "IoU of held-out shapes at held-out points uniform in the box"
CONTROL = "inference: every held-out shape gets the mean code"
CLAIM = "one decoder represents unseen shapes, and completes them from partial points (sec. 6.2-3)"
SETTINGS = {
    "code": 32,
    "width": 96,
    "depth": 3,
    "points": 96,
    "batch": 25,
    "train_steps": 900,
    "rate": 3e-3,
    "code_rate": 0.01,
    "fit_points": 256,
    "fit_steps": 150,
}


def run(seed: int) -> Figures:
    from pipeline import methods
    from pipeline.contexts import restricted
    from pipeline.fitting import fit_rows, start_shared, train
    from pipeline.samples import load_samples

    table = prepared("shapes", near=4096, uniform=2048, surface=1024, held_out=1024)
    known, new = (load_samples(part, "shapes") for part in split(table, 6))

    def built(settings):
        config = methods.configure("deepsdf", settings={**SETTINGS, **settings})
        return methods.build("deepsdf", config, known.form)

    def iou(rows, shared, samples=new):
        return float(held_out_iou(method, shared, rows, samples).mean())

    method, scanned = built({}), built({"fit_from": "scan"})
    result = train(method, known, seed=seed)
    shared, before = result.shared, {name: v.clone() for name, v in result.shared.items()}
    codes = fit_rows(method, shared, new, seed=seed).rows
    view = restricted(new, "view", seed=seed)
    mean = {"code.value": result.rows["code.value"].mean(0).expand(len(new), -1)}
    random = start_shared(method, seed + 1)
    return Figures(
        ours=iou(codes, shared),
        control=iou(mean, shared),
        also={
            "training shapes": iou(result.rows, shared, known),
            "completed from one view": iou(fit_rows(method, shared, view, seed=seed).rows, shared),
            "completed from a scan": iou(fit_rows(scanned, shared, view, seed=seed).rows, shared),
            "untrained decoder": iou(fit_rows(method, random, new, seed=seed).rows, random),
            "decoder moved": max(float((before[n] != v).sum()) for n, v in shared.items()),
        },
    )


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= 0.65, "codes of unseen shapes are not found"
    assert figures.ours >= figures.control + 0.3, "inference is no better than the mean code"
    assert figures.ours >= also["untrained decoder"] + 0.3, "codes rescue an untrained decoder"
    assert also["training shapes"] >= 0.70, "training shapes are not represented"
    for name in ("completed from one view", "completed from a scan"):
        assert also[name] >= figures.control + 0.3, f"{name}: no better than the mean shape"
        assert also[name] >= figures.ours - 0.25, f"{name}: far from codes of whole shapes"
    assert also["decoder moved"] == 0, "inference changed the decoder"
