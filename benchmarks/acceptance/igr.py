"""IGR: distances from clouds with normals, with the eikonal term and without it."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.acceptance import Figures

DATA = (
    "clouds of 16,384 points with normals: a torus, solid 8 of sample:glyphs, a bottle of "
    "sample:shapes; exact distances are known at 16,384 held-out points only"
)
METRIC = "mean |error| of the signed distance at held-out uniform points, mean of the shapes"
CONTROL = "the eikonal term (its weight is 0)"
CLAIM = "the eikonal term makes the zero set of raw points a signed distance (sec. 3)"
HIGHER = False
SHAPES = ("torus.off", "glyphs/8/8_0.ply", "shapes/bottle/bottle_000.stl")
SETTINGS = {"steps": 320, "sigma": 0.05}


def run(seed: int) -> Figures:
    """Ours, the twin without eikonal term; the torus also without normals."""
    from benchmarks.acceptance import _clouds
    from pipeline import methods
    from pipeline.fitting import fit_rows

    raw = _clouds.raw_clouds(SHAPES, surface=16_384)
    held = _clouds.exact(SHAPES)

    def fitted(samples=raw, held=held, **settings):
        config = methods.configure("igr", settings={**SETTINGS, **settings})
        method = methods.build("igr", config, samples.form)
        rows = fit_rows(method, {}, samples, seed=seed).rows
        return _clouds.quality(method, {}, rows, held)

    ours, control = fitted(), fitted(eikonal=0.0)
    torus = SHAPES[:1]
    bare = _clouds.raw_clouds(torus, surface=16_384)
    bare = replace(bare, form=bare.form.model_copy(update={"normals": False}))
    no_normals = fitted(bare, _clouds.exact(torus))
    return Figures(
        ours=float(ours["l1"].mean()),
        control=float(control["l1"].mean()),
        also={
            "iou": float(ours["iou"].mean()),
            "iou_worst": float(ours["iou"].min()),
            "eikonal": float(ours["eikonal"].mean()),
            "iou_control": float(control["iou"].mean()),
            "eikonal_control": float(control["eikonal"].mean()),
            "iou_without_normals": float(no_normals["iou"].mean()),
        },
    )


def check(figures: Figures) -> None:
    """Gates of the calibration; IoU alone would pass without the eikonal term."""
    also = figures.also
    assert also["iou"] >= 0.95, f"IoU {also['iou']:.3f}, must be at least 0.95"
    assert figures.ours <= 0.02, f"mean |f - d| {figures.ours:.4f}, must be at most 0.02"
    assert also["eikonal"] <= 0.10, f"mean ||grad f| - 1| {also['eikonal']:.3f}, at most 0.10"
    assert figures.control >= 0.04, f"the control's distances are as good: {figures.control:.4f}"
    off = also["eikonal_control"]
    assert off >= 0.15, f"the control has mean ||grad f| - 1| {off:.3f}, at least 0.15 is expected"
    assert also["iou_without_normals"] >= 0.9, "a torus without normals is not found"
