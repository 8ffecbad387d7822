"""SIREN for surfaces: solids from points and normals; without normals and the term off the surface
nothing says which side is which.
"""

from __future__ import annotations

from benchmarks.acceptance import Figures

DATA = (
    "clouds of 16,384 points with normals of a torus and of solid 8 of sample:glyphs; 16,384 "
    "held-out points uniform in the box, whose sides are exact"
)
METRIC = "IoU of the insides at held-out uniform points, of the worse shape"
CONTROL = "the normals and the term off the surface (their weights are 0)"
CLAIM = "sine layers give closed, detailed surfaces from oriented points (sec. 4.2, fig. 4)"
SHAPES = ("torus.off", "glyphs/8/8_0.ply")


def run(seed: int) -> Figures:
    """Ours and the twin; the surface's own points of both."""
    from benchmarks.acceptance import _clouds
    from pipeline import methods
    from pipeline.fitting import fit_rows

    raw, held = _clouds.raw_clouds(SHAPES, surface=16_384), _clouds.exact(SHAPES)

    def fitted(**settings):
        config = methods.configure("siren_sdf", settings=settings)
        method = methods.build("siren_sdf", config, raw.form)
        return _clouds.quality(method, {}, fit_rows(method, {}, raw, seed=seed).rows, held)

    ours, control = fitted(), fitted(normals=0.0, away=0.0)
    return Figures(
        ours=float(ours["iou"].min()),
        control=float(control["iou"].max()),
        also={"iou_mean": float(ours["iou"].mean()), "l1": float(ours["l1"].mean())},
    )


def check(figures: Figures) -> None:
    """The zero set alone is tested: values away from it are not metric."""
    assert figures.ours >= 0.95, f"IoU {figures.ours:.3f}, must be at least 0.95"
    assert figures.control <= 0.5, f"the control finds the sides too: IoU {figures.control:.3f}"
