"""A method that cannot use a data set says so before a sample is read, and only then."""

import pytest

from pipeline.ingest.sample_sets import folder
from pipeline.stages import fold_prepared, ingest_shard, prepare, refuse_unfit
from pipeline.stages.common import best_form, build_method, prepared_of
from schemas.run import Run


def run_with(kind="shapes", method="deepsdf", **ingest):
    return Run.model_validate(
        {
            "name": "a",
            "dataset": {"url": "/nowhere", "kind": kind},
            "ingest": ingest,
            "method": method,
            "store": "/nowhere.zarr",
        }
    )


@pytest.mark.parametrize(
    ("ingest", "match"),
    [
        ({"near": 0}, r"deepsdf: points of the set 'near'.*set ingest\.near"),
        ({"uniform": 0}, r"deepsdf: points of the set 'uniform'.*set ingest\.uniform"),
        ({"sign": "none"}, "deepsdf needs .*without signs"),
    ],
)
def test_keys_of_ingest_that_make_too_little_are_refused_at_once(ingest, match):
    refuse_unfit(run_with())
    with pytest.raises(ValueError, match=match):
        refuse_unfit(run_with(**ingest))


def test_an_encoder_of_whole_voxels_cannot_complete():
    run = run_with(method={"name": "occnet", "encoder": "voxels"}, voxels=32)
    refuse_unfit(run)
    half = run.model_copy(update={"fit": run.fit.model_copy(update={"context": "half"})})
    with pytest.raises(ValueError, match=r"occnet: fits from voxels .* show the whole"):
        refuse_unfit(half)
    with pytest.raises(ValueError, match=r"occnet.*voxels"):
        refuse_unfit(run_with(method={"name": "occnet", "encoder": "voxels"}))


def test_pictures_of_unknown_channels_are_not_judged_beforehand():
    assert best_form(run_with("images", "siren", color="keep")) is None
    assert best_form(run_with("images", "siren", color="gray")).channels == 1
    refuse_unfit(run_with("images", "siren", color="keep"))


@pytest.mark.parametrize(
    ("name", "ingest"),
    [
        ("glyphs", {"voxels": 16, "views": 2, "view_size": 16, "near": 64, "uniform": 64}),
        ("glyphs", {"sign": "none", "near": 0, "uniform": 64}),
        ("clouds", {"near": 64}),
        ("clouds", {"normals": "none"}),
    ],
)
def test_the_form_that_keys_promise_is_the_form_that_ingest_makes(tmp_path, name, ingest):
    from pipeline.samples import form_of

    kind = "points" if name == "clouds" else "shapes"
    run = Run.model_validate(
        {
            "name": "a",
            "dataset": {
                "url": str(folder(name)),
                "kind": kind,
                "include": ["*0.ply", "*0/0_1.ply"],
            },
            "ingest": {"surface": 64, "held_out": 8, **ingest},
            "method": "deepsdf",
            "store": str(tmp_path / "a.zarr"),
            "limit": 2,
        }
    )
    for unit in prepare(run):
        ingest_shard(run, unit, "a")
    fold_prepared(run)
    prepared = prepared_of(run)
    made = form_of(prepared.rows(0, prepared.meta.rows), kind)
    assert made == best_form(run).model_copy(update={"color": made.color})
    if ingest.get("sign") == "none" or kind == "points":
        with pytest.raises(ValueError, match="deepsdf needs"):
            build_method(run, prepared)
