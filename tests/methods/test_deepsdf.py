"""DeepSDF: its acceptance on meshes, and codes of unseen boxes of six factors."""

from dataclasses import replace

import pytest
import torch

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.fitting import fit_rows, start_shared, train
from pipeline.objectives.balance import balanced_weight
from pipeline.objectives.scan import scan_l1
from pipeline.samples import Points, load_samples
from schemas.samples import FormSpec
from tests.fitting.tables import box_table
from tests.methods.test_sdf import held_out_iou

SETTINGS = {
    "code": 16,
    "width": 64,
    "depth": 3,
    "points": 64,
    "batch": 48,
    "train_steps": 700,
    "rate": 5e-3,
    "code_rate": 5e-3,
    "fit_points": 256,
    "fit_steps": 200,
}


@pytest.fixture(scope="module")
def trained():
    table = box_table(56, points=4096)
    known, new = load_samples(table.slice(0, 48), "shapes"), load_samples(table.slice(48), "shapes")
    method = methods.build("deepsdf", methods.configure("deepsdf", settings=SETTINGS), known.form)
    return method, known, new, train(method, known, seed=0)


def test_codes_of_unseen_boxes_beat_the_mean_code_with_the_decoder_untouched(trained):
    """Gates of the calibration: train >= 0.93, held-out >= 0.80 and 0.3 above the mean code."""
    method, known, new, result = trained
    assert held_out_iou(method, result.shared, result.rows, known).mean() >= 0.93
    before = {name: value.clone() for name, value in result.shared.items()}
    fitted = fit_rows(method, result.shared, new, seed=0)
    assert all(torch.equal(before[name], value) for name, value in result.shared.items())
    assert fitted.rows.keys() == {"code.value"}
    iou = held_out_iou(method, result.shared, fitted.rows, new).mean()
    mean = {"code.value": result.rows["code.value"].mean(0).expand(len(new), -1)}
    assert iou >= 0.80
    assert iou >= held_out_iou(method, result.shared, mean, new).mean() + 0.3


def test_an_untrained_decoder_cannot_be_rescued_by_codes(trained):
    method, _, new, _ = trained
    random = start_shared(method, 1)
    fitted = fit_rows(method, random, new, seed=0)
    assert held_out_iou(method, random, fitted.rows, new).mean() < 0.6


def test_codes_do_not_depend_on_lanes(trained):
    method, _, new, result = trained
    method = replace(method, fit=(replace(method.fit[0], steps=50),))
    table = box_table(56, points=4096).slice(48)
    two, many = (fit_rows(method, result.shared, new, seed=0, lanes=n) for n in (2, 5))
    assert torch.equal(two.rows["code.value"], many.rows["code.value"])
    alone = fit_rows(
        method, result.shared, load_samples(table.slice(3, 1), "shapes"), seed=0, lanes=2
    )
    assert torch.equal(alone.rows["code.value"][0], two.rows["code.value"][3])


def test_between_two_codes_lies_a_box_between(trained):
    """Shared coordinates: the midpoint of two codes resembles the box of mean parameters."""
    method, known, _, result = trained
    code = result.rows["code.value"]
    ends = held_out_iou(method, result.shared, {"code.value": code.roll(1, 0)}, known)
    middle = held_out_iou(
        method, result.shared, {"code.value": (code + code.roll(1, 0)) / 2}, known
    )
    assert middle.mean() > ends.mean() + 0.1


def test_unseen_meshes_are_coded_and_completed():
    module = acceptance("deepsdf")
    module.check(module.run(0))


def test_the_paper_network_has_the_authors_layers():
    """8 x 512, the input again before the fifth, weight norm and dropout on all but the last."""
    form = FormSpec(kind="shapes", dims=3, signed=True, normals=True)
    method = methods.build("deepsdf", methods.configure("deepsdf", "paper"), form)
    net = method.model.net
    shapes = [tuple(layer.weight.shape) for layer in net.layers]
    assert shapes == [
        (512, 259), (512, 512), (512, 512), (253, 512), (512, 512), (512, 512), (512, 512),
        (512, 512), (1, 512),
    ]  # fmt: skip
    assert [layer.magnitude is not None for layer in net.layers] == [True] * 8 + [False]
    assert [row.dropout for row in net.table] == [0.2] * 8 + [0.0]
    assert [row.skip for row in net.table] == [i == 4 for i in range(9)]
    assert method.model.code.max_norm == 1.0
    assert method.fit[0].updates[0].groups.keys() == {"code."}


def test_a_scan_without_normals_is_refused():
    config = methods.configure("deepsdf", settings={"fit_from": "scan"})
    form = FormSpec(kind="shapes", dims=3, signed=True)
    with pytest.raises(ValueError, match="fit_from: scan needs surface points with normals; this"):
        methods.build("deepsdf", config, form)


def scanned(distance):
    """Two points of the sphere of radius 1/2 and two points of the box."""
    surface = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]])
    coords = torch.tensor([[[0.8, 0, 0], [0.2, 0, 0]]])
    return Points(
        coords=coords,
        distance=torch.tensor([distance]),
        weight=torch.ones(1, 2),
        surface=surface,
        normals=2 * surface,
        color=None,
        surface_weight=torch.ones(1, 2),
    )


def test_a_scan_says_eta_on_either_side_and_free_space_before():
    def sphere(x):
        return x.norm(dim=-1, keepdim=True) - 0.5

    terms = scan_l1(sphere, scanned([0.3, -0.3]), 0.02, 0.1)
    assert float(terms["sdf"]) < 1e-6  # exact: the field is 0.02 away on either side
    assert float(terms["free"]) == 0.0  # the point inside does not count as free
    wrong = scan_l1(lambda x: sphere(x) - 1, scanned([0.3, -0.3]), 0.02, 0.1)
    assert float(wrong["free"]) == pytest.approx(0.1)  # clamped
    assert float(wrong["sdf"]) == pytest.approx(0.1)


def test_balanced_points_count_alike():
    distance = torch.tensor([[-1.0, 1, 1, 1], [1.0, 1, 1, 1]])
    weight = balanced_weight(distance, torch.ones(2, 4))
    assert torch.allclose(weight[0], torch.tensor([1, 1 / 3, 1 / 3, 1 / 3]))
    assert torch.allclose(weight[1], torch.full((4,), 0.25))
