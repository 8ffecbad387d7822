"""Occupancy Networks: acceptance, independence of batch mates, running statistics, refusals."""

import multiprocessing
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance._shapes import held_out_iou
from benchmarks.acceptance._solids import one_box, table
from pipeline import methods
from pipeline.evaluate.metrics import measure
from pipeline.fitting import fit_rows, start_shared, train
from pipeline.fitting.optimizers import Sgd
from pipeline.samples import load_samples
from schemas.samples import FormSpec

SMALL = {
    "inputs": 64,
    "encoder_width": 8,
    "encoder_blocks": 2,
    "code": 8,
    "width": 12,
    "blocks": 2,
    "points": 32,
    "batch": 8,
    "train_steps": 20,
}
FULL = FormSpec(kind="shapes", dims=3, signed=True, normals=True, voxels=32, views=4, view_size=32)


def boxes(count, seed=0, **sizes):
    random = np.random.default_rng(seed)
    return table([one_box(random) for _ in range(count)], seed=seed, **sizes)


def build(form, **settings):
    return methods.build("occnet", methods.configure("occnet", settings=settings), form)


@pytest.fixture(scope="module")
def figures():
    return acceptance("occnet").run(0)


def test_held_out_shapes_come_out_of_their_points(figures):
    acceptance("occnet").check(figures)


def test_training_moves_the_running_statistics_and_fits_leave_them():
    samples = load_samples(boxes(12), "shapes")
    method = build(samples.form, **SMALL)
    start = start_shared(method, 0)
    trained = train(method, samples, seed=0).shared
    running = [n for n in trained if "running" in n]
    assert len(running) == 2 * (2 * 2 + 1)
    assert all((trained[n] - start[n]).abs().max() > 1e-3 for n in running)
    before = {n: v.clone() for n, v in trained.items()}
    fitted = fit_rows(method, trained, samples, seed=0)
    assert all(torch.equal(before[n], trained[n]) for n in trained)
    assert fitted.rows.keys() == {"code.value"}


def test_a_method_fresh_from_build_measures_as_the_one_that_fitted():
    """Stages build anew on every worker: it must not take the statistics of what it is asked."""
    shapes = boxes(12)
    samples = load_samples(shapes, "shapes")
    method = build(samples.form, **SMALL)
    trained = train(method, samples, seed=0).shared
    rows = fit_rows(method, trained, samples, seed=0).rows
    before = {n: v.clone() for n, v in trained.items()}
    fresh = build(samples.form, **SMALL)
    ours, theirs = (measure("shapes", m, trained, rows, samples, shapes) for m in (method, fresh))
    fresh.model.train()
    again = measure("shapes", fresh, trained, rows, samples, shapes)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
        np.testing.assert_array_equal(ours[name], again[name])
    assert all(torch.equal(before[n], trained[n]) for n in trained)


def descending(form):
    """By plain gradient steps: a bias before a normalization has no effect, and Adam would blow the
    rounding errors of its gradient up to full steps."""
    method = build(form, **SMALL)
    (phase,) = method.train
    (update,) = phase.updates
    update = replace(update, groups={"": Sgd(2e-3)})
    return replace(method, train=(replace(phase, updates=(update,)),))


def _worker(rank, port, queue):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    samples = load_samples(boxes(12).take(list(range(rank, 12, 2))), "shapes")
    method = descending(samples.form)
    shared = train(method, samples, seed=0, rank=rank, world=2).shared
    method.model.extra = torch.nn.BatchNorm1d(3)
    message = ""
    try:
        train(method, samples, seed=0, rank=rank, world=2)
    except ValueError as error:
        message = str(error)
    queue.put(({name: value.numpy() for name, value in shared.items()}, message))
    torch.distributed.destroy_process_group()


def test_two_workers_train_what_one_trains_running_statistics_included():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(r, port, queue)) for r in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=240) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    samples = load_samples(boxes(12), "shapes")
    method = descending(samples.form)
    start, one = start_shared(method, 0), train(method, samples, seed=0).shared
    for shared, message in found:
        assert "extra is a BatchNorm1d" in message
        for name, value in one.items():
            away = (value - torch.from_numpy(shared[name])).abs().max()
            assert away <= 1e-6 + 1e-3 * (value - start[name]).abs().max(), name
    for name, value in found[0][0].items():
        assert (value == found[1][0][name]).all(), name


def test_training_resumes_to_the_same_bits_with_its_statistics():
    samples = load_samples(boxes(12), "shapes")
    method = build(samples.form, **SMALL)
    saved = []
    whole = train(method, samples, seed=0, checkpoint=saved.append, checkpoint_s=0.0)
    again = train(method, samples, seed=0, resume=saved[9])
    assert all(torch.equal(whole.shared[n], again.shared[n]) for n in whole.shared)


def test_a_code_does_not_depend_on_its_batch_mates():
    shapes = boxes(9, seed=1)
    samples = load_samples(shapes, "shapes")
    method = build(samples.form, **SMALL)
    shared = start_shared(method, 0)
    many = fit_rows(method, shared, samples, seed=0, lanes=9).rows["code.value"]
    two = fit_rows(method, shared, samples, seed=0, lanes=2).rows["code.value"]
    alone = load_samples(shapes.slice(4, 1), "shapes")
    assert torch.equal(many, two)
    assert torch.equal(many[4], fit_rows(method, shared, alone, seed=0).rows["code.value"][0])


def test_the_variational_one_trains_on_draws_and_fits_means():
    samples = load_samples(boxes(24), "shapes")
    settings = {**SMALL, "code": 4, "width": 24, "encoder_width": 16, "inputs": 128}
    settings |= {"encoder": "vae", "train_steps": 150, "rate": 1e-2, "kl": 0.05, "points": 128}
    method = build(samples.form, **settings)
    trained = train(method, samples, seed=0)
    assert {"kl", "bce"} <= trained.log[-1].keys()
    assert trained.log[-1]["bce"] < 0.75 * trained.log[0]["bce"]
    codes = [fit_rows(method, trained.shared, samples, seed=0).rows for _ in range(2)]
    assert torch.equal(codes[0]["code.value"], codes[1]["code.value"])
    rolled = {"code.value": codes[0]["code.value"].roll(1, 0)}
    own, other = (
        held_out_iou(method, trained.shared, rows, samples, level=0.4).mean()
        for rows in (codes[0], rolled)
    )
    assert own > other + 0.03


@pytest.mark.parametrize(
    ("form", "settings", "words"),
    [
        (FormSpec(kind="images", channels=3, dims=2), {}, "this dataset has images"),
        (FormSpec(kind="shapes", dims=3, distances=True), {}, "without signs: set ingest.sign"),
        (FULL.model_copy(update={"sets": ("near", "uniform")}), {}, "set ingest.surface"),
        (FULL.model_copy(update={"sets": ("near", "surface")}), {}, "set ingest.uniform"),
        (FULL.model_copy(update={"voxels": 0}), {"encoder": "voxels"}, "set ingest.voxels"),
        (FULL.model_copy(update={"views": 0}), {"encoder": "image"}, "set ingest.views"),
    ],
)
def test_data_it_cannot_use_is_refused_with_the_way_out(form, settings, words):
    with pytest.raises(ValueError, match=f"occnet .*{words}"):
        build(form, **settings)


@pytest.mark.parametrize("preset", ["paper", "paper-voxels", "paper-image", "paper-vae"])
def test_the_papers_sizes(preset):
    method = methods.build("occnet", methods.configure("occnet", preset), FULL)
    decoder = sum(p.numel() for n, p in method.model.named_parameters() if "encoder" not in n)
    code, width = method.field.config.code, method.field.config.width
    linears = 4 * width + 10 * (width**2 + width) + width + 1
    extra = code * width + width if preset == "paper-vae" else 11 * 2 * (code * width + width)
    assert decoder == linears + extra + code  # the code itself is a row
