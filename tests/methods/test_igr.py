"""IGR: distances out of raw points, per cloud and by codes; the compiled step, refusals."""

from dataclasses import replace

import pytest
import torch

from benchmarks.acceptance import _clouds, acceptance
from pipeline import methods
from pipeline.fitting import fit_rows, train
from pipeline.samples import load_samples
from schemas.samples import FormSpec
from tests.fitting.tables import box_table
from tests.methods.test_sdf import held_out_iou

SMALL = {"width": 32, "depth": 3, "points": 64, "steps": 20}


def built(samples, **settings):
    return methods.build("igr", methods.configure("igr", settings=settings), samples.form)


def test_the_eikonal_term_makes_distances_of_raw_clouds():
    module = acceptance("igr")
    module.check(module.run(0))


@pytest.mark.parametrize("sigma", [None, 0.1])
def test_rows_do_not_depend_on_lanes_or_neighbors(sigma):
    """Second derivatives and points drawn inside the loss cross no lanes either."""
    table = box_table(5, points=512, surface=256)
    samples = load_samples(table, "shapes")
    method = built(samples, sigma=sigma, **SMALL)
    two, many = (fit_rows(method, {}, samples, seed=0, lanes=n).rows for n in (2, 5))
    alone = fit_rows(method, {}, load_samples(table.slice(3, 1), "shapes"), seed=0, lanes=2).rows
    for name in two:
        assert torch.equal(two[name], many[name])
        assert torch.equal(two[name][3], alone[name][0])


def test_distances_of_the_data_have_no_influence():
    samples = load_samples(box_table(2, points=512, surface=256), "shapes")
    wrong = {
        name: replace(s, columns={k: v * 0 if k == "distance" else v for k, v in s.columns.items()})
        for name, s in samples.sets.items()
    }
    wrong = replace(samples, sets=wrong)
    one, other = (fit_rows(built(s, **SMALL), {}, s, seed=0).rows for s in (samples, wrong))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # Inductor's own
def test_second_derivatives_run_in_the_compiled_step():
    samples = _clouds.raw_clouds(("torus.off",), surface=2048)
    method = built(samples, **{**SMALL, "steps": 40})
    plain = fit_rows(method, {}, samples, seed=0)
    compiled = fit_rows(method, {}, samples, seed=0, compiled=True)
    assert torch.allclose(plain.loss, compiled.loss, rtol=0.01)


@pytest.fixture(scope="module")
def space():
    table = box_table(40, points=64, held=1024, surface=512)
    known, new = load_samples(table.slice(0, 32), "shapes"), load_samples(table.slice(32), "shapes")
    settings = {"mode": "space", "width": 48, "depth": 3, "code": 16, "sigma": 0.1, "batch": 8}
    settings |= {"steps": 400, "points": 48, "code_rate": 4e-3, "fit_steps": 150}
    method = built(known, **settings)
    return method, known, new, train(method, known, seed=0)


def test_codes_of_new_clouds_are_inferred_with_the_network_untouched(space):
    method, known, new, result = space
    before = {name: value.clone() for name, value in result.shared.items()}
    fitted = fit_rows(method, result.shared, new, seed=0)
    assert all(torch.equal(before[name], value) for name, value in result.shared.items())
    assert fitted.rows.keys() == {"code.value"}
    iou = held_out_iou(method, result.shared, fitted.rows, new).mean()
    mean = {"code.value": result.rows["code.value"].mean(0).expand(len(new), -1)}
    common = held_out_iou(method, result.shared, mean, new).mean()
    assert held_out_iou(method, result.shared, result.rows, known).mean() >= 0.85
    assert iou >= 0.75, iou
    assert iou >= common + 0.15, (iou, common)


def test_codes_start_at_zero(space):
    method, known, *_ = space
    one = train(replace(method, train=(replace(method.train[0], steps=1),)), known, seed=0)
    moved = one.rows["code.value"].abs().amax(1) > 0
    assert moved.sum() == 8  # those of one batch


def test_what_it_cannot_use_is_named():
    bare = FormSpec(kind="points", dims=3)
    assert methods.build("igr", methods.configure("igr"), bare).fit[0].size.near == 0
    with pytest.raises(ValueError, match=r"normals: 0.5 needs a normal .* Set method.normals: 0"):
        methods.build("igr", methods.configure("igr", settings={"normals": 0.5}), bare)
    images = FormSpec(kind="images", dims=2, channels=3)
    with pytest.raises(ValueError, match="igr needs points on surfaces; this dataset has images"):
        methods.build("igr", methods.configure("igr"), images)
    empty = FormSpec(kind="shapes", dims=3, signed=True, normals=True, sets=("near", "uniform"))
    with pytest.raises(ValueError, match=r"set ingest\.surface"):
        methods.build("igr", methods.configure("igr"), empty)


def test_the_paper_preset_is_the_authors_network():
    form = FormSpec(kind="points", dims=3, normals=True, distances=True)
    method = methods.build("igr", methods.configure("igr", "paper"), form)
    table = method.model.table
    assert [layer.width for layer in table] == [512, 512, 512, 509, 512, 512, 512, 512, 1]
    assert [layer.skip for layer in table].index(True) == 4
    assert method.model.layers[-1].initializers["bias"].value == -1.0
    size = method.fit[0].size
    assert (size.surface, size.near) == (16_384, 16_384)
    space = methods.configure("igr", "paper", {"mode": "space"})
    assert methods.build("igr", space, form).model.net.layers[0].inputs == 259
