"""Deep Local Shapes on unseen scenes, and what its cells owe to each other."""

import pytest
import torch

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.fitting import fit_rows, start_shared
from pipeline.samples import load_samples
from schemas.samples import FormSpec
from tests.fitting.tables import box_table

SETTINGS = {"resolution": 8, "capacity": 400, "code": 8, "width": 16, "fit_steps": 40}


@pytest.fixture(scope="module")
def figures():
    return acceptance("deepls").run(0)


@pytest.mark.slow
def test_local_codes_beat_one_global_code_and_agree_where_they_meet(figures):
    acceptance("deepls").check(figures)


def test_every_point_teaches_all_cells_that_it_lies_in():
    """With all neighbors drawn, a step sees 27 cells a point; a choice is unbiased."""
    samples = load_samples(box_table(2, points=1024), "shapes")
    means = []
    for neighbors in (0, 3):
        settings = SETTINGS | {"neighbors": neighbors, "prior": 0.0, "fit_points": 1024}
        method = methods.build(
            "deepls", methods.configure("deepls", settings=settings), samples.form
        )
        rows = fit_rows(method, start_shared(method, 0), samples, seed=0).rows
        means.append(rows["cells.value"])
    used = means[0].abs().sum(-1) > 0
    alike = torch.cosine_similarity(means[0][used], means[1][used], dim=-1)
    assert alike.mean() > 0.8


def test_fitting_leaves_the_decoder_and_the_tables_keys_alone():
    samples = load_samples(box_table(2, points=512), "shapes")
    method = methods.build("deepls", methods.configure("deepls", settings=SETTINGS), samples.form)
    shared = start_shared(method, 0)
    before = {name: value.clone() for name, value in shared.items()}
    fitted = fit_rows(method, shared, samples, seed=0)
    assert all(torch.equal(before[name], value) for name, value in shared.items())
    assert (fitted.rows["cells_count.value"] > 20).all()


def test_data_without_signs_are_refused():
    form = FormSpec(kind="shapes", dims=3, distances=True)
    with pytest.raises(ValueError, match=r"deepls needs shapes with signed distances.*without"):
        methods.build("deepls", methods.configure("deepls"), form)
