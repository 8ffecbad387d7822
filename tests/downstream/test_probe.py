"""Probes: classifiers on known data, symmetries of weight networks, refusals, the report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.downstream.alignment import align
from pipeline.downstream.classify import (
    accuracy,
    kernel_ridge,
    mean_average_precision,
    neighbors,
    perceptron,
    recall,
    ridge,
    standardizer,
)
from pipeline.downstream.equivariant import Chain, WeightNetwork, layer_statistics
from pipeline.downstream.probe import open_probe, report_text, run_probe
from pipeline.downstream.training import Interrupted
from pipeline.fields.mlp import MLP
from pipeline.fields.sine import sine_layers
from schemas.base import Location
from schemas.probing import ProbeJob
from tests.downstream.small import code_store, rings

QUICK = {"steps": 60, "batch": 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """400 codes of 16 entries about three centers."""
    url = str(tmp_path_factory.mktemp("stores") / "rings.zarr")
    code_store(Location(url=url), *rings(400, 0))
    return url


def job_of(read: str, store: object, **changes) -> ProbeJob:
    values = {"name": "probe", "source": read, "store": str(store), "train": QUICK, **changes}
    return ProbeJob.model_validate(values)


# --- classifiers ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 30), (60, 300)], ids=["tall", "wide"])
def test_ridge_is_the_closed_form_with_the_best_penalty(shape):
    random = torch.Generator().manual_seed(0)
    n, d = shape
    x = torch.randn(n, d, generator=random)
    weight = torch.randn(d, 4, generator=random)
    labels = (x @ weight).argmax(1)
    scores = ridge(x, labels, 4)
    x64 = x.double() - x.double().mean(0)
    wanted = torch.nn.functional.one_hot(labels, 4).double()
    values = torch.linalg.eigvalsh(x64 @ x64.T if n <= d else x64.T @ x64)
    mean = values[values > values.max() * 1e-12].mean()
    best = []
    for power in range(-6, 4):
        eye = torch.eye(d, dtype=torch.float64) * 10.0**power * mean
        solved = torch.linalg.solve(x64.T @ x64 + eye, x64.T @ (wanted - wanted.mean(0)))
        best.append((x64 @ solved + wanted.mean(0)).float())
    assert min(float((scores(x) - b).abs().max()) for b in best) < 1e-4
    new = torch.randn(500, d, generator=random)
    assert accuracy(scores(new), (new @ weight).argmax(1)) > (0.6 if n > d else 0.3)


def test_leave_one_out_chooses_a_penalty_that_withstands_noise():
    """As many entries as rows: without a penalty the classes drown."""
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(200) % 2
    x = torch.randn(200, 195, generator=random)
    x[:, 0] += 3.0 * labels
    scores = ridge(x[:100], labels[:100], 2)
    bare = torch.linalg.lstsq(
        x[:100], torch.nn.functional.one_hot(labels[:100], 2).float()
    ).solution
    assert accuracy(scores(x[100:]), labels[100:]) >= accuracy(x[100:] @ bare, labels[100:])
    assert accuracy(scores(x[100:]), labels[100:]) > 0.65


def test_neighbors_vote_and_the_nearer_decides():
    known = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
    scores = neighbors(known, torch.tensor([0, 0, 1, 1]), 2, 2)
    assert scores(torch.tensor([[0.4], [2.4], [2.6]])).argmax(1).tolist() == [0, 0, 1]


def test_kernels_tell_what_no_plane_divides():
    """Two rings about one center."""
    random = torch.Generator().manual_seed(0)
    angle = torch.rand(300, generator=random) * 6.2832
    labels = torch.arange(300) % 2
    radius = 1.0 + labels + 0.1 * torch.randn(300, generator=random)
    x = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    found = kernel_ridge(x[:200], labels[:200], 2)(x[200:])
    assert accuracy(found, labels[200:]) >= 0.97
    assert accuracy(ridge(x[:200], labels[:200], 2)(x[200:]), labels[200:]) <= 0.7


def test_mean_average_precision_by_hand():
    gallery = torch.tensor([[1.0], [2.0], [3.0], [9.0]])
    found = mean_average_precision(
        torch.zeros(1, 1), torch.tensor([1]), gallery, torch.tensor([1, 0, 1, 1]), 3
    )
    assert found == pytest.approx((1 + 2 / 3) / 3)  # places 1 and 3 of 3 that could be right
    asked, wanted = torch.tensor([[0.0], [2.1]]), torch.tensor([1, 1])
    labels = torch.tensor([1, 0, 1, 1])
    assert recall(asked, wanted, gallery, labels, 1) == 0.5  # the nearest of 2.1 is of class 0
    assert recall(asked, wanted, gallery, labels, 2) == 1


def test_standardized_rows_keep_hardly_varying_entries_small():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 1e-6 * x[:, 2]
    found = standardizer(x)(x)
    assert found[:, :2].std(0, correction=0).sub(1).abs().max() < 1e-5
    assert found[:, 2].abs().max() < 1e-3


# --- weight networks --------------------------------------------------------------------------


def small_chain() -> tuple[MLP, Chain]:
    model = MLP(2, sine_layers(2, 7, 3, 3))
    offset, weights, biases = 0, [], []
    for layer in model.layers:
        weights.append(offset)
        biases.append(offset + layer.weight.numel())
        offset += layer.weight.numel() + layer.bias.numel()
    return model, Chain((2, 7, 7, 7, 3), tuple(weights), tuple(biases), (True,) * 3, offset)


def evaluate(model: MLP, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Fields of flat rows at the same points."""
    found = []
    for row in rows:
        torch.nn.utils.vector_to_parameters(row, model.parameters())
        found.append(model(x))
    return torch.stack(found).detach()


def test_reordered_and_turned_rows_are_the_same_fields_to_field_and_reader():
    model, chain = small_chain()
    chain = replace(chain, activations=tuple(layer.activation for layer in model.table))
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(5, chain.size, generator=random) * 0.3
    x = torch.rand(20, 2, generator=random)
    assert sum(p.numel() for p in model.parameters()) == chain.size
    assert torch.equal(chain.join(*chain.split(rows)), rows)
    orders = chain.random_orders(5, random)
    reordered = chain.reorder(rows, orders)
    turned = chain.turn(rows, chain.random_signs(5, random))
    for other in (reordered, turned):
        assert (other - rows).abs().max() > 0.5
        error = (evaluate(model, other, x) - evaluate(model, rows, x)).abs().max()
        assert error < 2e-4  # sums in another order, within sines of large arguments
    torch.manual_seed(0)
    network = WeightNetwork(chain, 4, statistics=layer_statistics(chain, rows)).eval()
    with torch.no_grad():
        assert (network(reordered) - network(rows)).abs().max() <= 1e-5
        assert (network(turned) - network(rows)).abs().max() > 1e-3  # it sees signs
        for axis in (0, 1):  # inputs and outputs are no hidden units: their order counts
            weights, biases = chain.split(rows)
            if axis:
                weights[0] = weights[0].flip(2)
            else:
                weights[-1], biases[-1] = weights[-1].flip(1), biases[-1].flip(1)
            assert (network(chain.join(weights, biases)) - network(rows)).abs().max() > 1e-3
    units = chain.units(rows, x)[-1].transpose(1, 2)
    assert (units - evaluate(model, rows, x)).abs().max() < 1e-3  # sines of large arguments
    torch.manual_seed(0)
    statistics = layer_statistics(chain, rows)
    probed = WeightNetwork(chain, 4, statistics=statistics, probes=6).eval().double()
    rows, reordered = rows.double(), chain.reorder(rows, orders).double()
    with torch.no_grad():
        before = probed(rows)
        assert (probed(reordered) - before).abs().max() <= 1e-8
        probed.coords.add_(0.3)
        assert (probed(rows) - before).abs().max() > 1e-3  # it sees what units give there


# --- probes of stores -------------------------------------------------------------------------


def test_classes_are_read_off_codes_and_shuffled_labels_say_nothing(source, tmp_path):
    report = run_probe(job_of(source, tmp_path / "probe", shuffles=6))
    found = report["features"]["latents/code"]
    for reader in ("linear", "knn", "mlp"):
        assert found[reader]["accuracy"] >= 0.8
        assert found[reader]["shuffled"] <= 0.6
    assert found["mAP@10"] >= 0.5
    assert 0.7 <= found["recall@1"] <= found["recall@10"] <= 1
    assert report["learned"] == 300
    assert report["test"] == 100
    assert sum(c["learned"] for c in report["classes"].values()) == 300
    assert "no prepared dataset" in report["notes"][0]
    kept = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert kept == report
    assert "shuffled labels" in (tmp_path / "probe" / "probe.txt").read_text()
    assert "linear" in report_text(report)
    again = run_probe(job_of(source, tmp_path / "probe", shuffles=6))
    assert again == report


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        (None, {}, "no row has a label"),
        (np.zeros(80, int), {}, "all rows are of one class, 'ring0'"),
        (np.r_[2, np.arange(79) % 2], {}, r"fewer than 2 rows to learn from of class ring2 \(1\)"),
        (np.arange(80) % 2, {"test": ["val"]}, "no row is of split val .* test 20, train 60"),
        (np.arange(80) % 2, {"test": ["train"]}, "train is learned from and measured"),
        (np.arange(80) % 2, {"classifiers": ["equivariant"]}, "latents, whose entries have no"),
    ],
    ids=["no labels", "one class", "one row", "empty split", "same split", "latents"],
)
def test_what_no_probe_can_tell_is_refused_before_it_starts(tmp_path, labels, changes, message):
    url = str(tmp_path / "codes.zarr")
    code_store(Location(url=url), rings(80, 0)[0], labels)
    with pytest.raises(ValueError, match=message):
        open_probe(job_of(url, tmp_path / "probe", **changes))


def test_a_classifier_is_named_once():
    with pytest.raises(ValueError, match="names twice"):
        job_of("a.zarr", "b", classifiers=["knn", "knn"])


def test_alignment_undoes_other_orders_and_signs():
    _, chain = small_chain()
    random = torch.Generator().manual_seed(0)
    reference = torch.randn(chain.size, generator=random)
    rows = reference + 0.05 * torch.randn(6, chain.size, generator=random)
    other = chain.turn(rows, chain.random_signs(6, random))
    other = chain.reorder(other, chain.random_orders(6, random))
    assert (other - rows).abs().mean() > 0.5
    assert (align(chain, other, reference) - rows).abs().max() < 1e-6
    assert torch.equal(align(chain, rows, reference), rows)


# --- training that is stopped, and shared -----------------------------------------------------


class _Stop:
    """Asks to stop after a number of steps."""

    def __init__(self, after: int):
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("after", [25, 75])
def test_a_stopped_probe_ends_at_the_same_figures(source, tmp_path, after):
    """In the first network, and in a second one (of shuffled labels) when the first is learned."""

    def job(name):
        return job_of(source, tmp_path / name, classifiers=["mlp"], shuffles=1)

    whole = run_probe(job("whole"))
    with pytest.raises(Interrupted, match=f"stopped after step {after % 60 or 60} of 60"):
        run_probe(job("cut"), stop=_Stop(after))
    left = sorted(path.name for path in (tmp_path / "cut").rglob("heads/*"))
    assert sum(name.endswith(".checkpoint.safetensors") for name in left) == 1
    assert len(left) == 1 + (after > 60)
    assert not (tmp_path / "cut" / "probe.json").exists()
    steps = _Stop(10**9)
    again = run_probe(job("cut"), stop=steps)
    assert again == whole
    assert 10**9 - steps.left == 120 - after  # nothing was learned twice
    assert not list((tmp_path / "cut").rglob("heads/*"))


def test_two_ranks_find_what_one_finds(source, tmp_path, monkeypatch):
    """Two threads meet in an all-reduce of their own; the network has no dropout."""
    import threading

    import torch.distributed as dist

    from pipeline.downstream import probe

    def plain(inputs, width, outputs):
        """Starts by a generator of its own: that of torch is one for both threads."""
        random = torch.Generator().manual_seed(0)
        model = perceptron(inputs, width, outputs, dropout=0.0)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                bound = parameter.shape[1] ** -0.5
                torch.nn.init.uniform_(parameter, -bound, bound, generator=random)
            elif not (parameter == 1).all():  # a bias
                torch.nn.init.zeros_(parameter)
        return model

    monkeypatch.setattr(probe, "perceptron", plain)
    jobs = {
        name: job_of(source, tmp_path / name, classifiers=["linear", "mlp"], shuffles=1)
        for name in ("one", "two")
    }
    alone = run_probe(jobs["one"])
    barrier, box, place, found = threading.Barrier(2), {}, threading.local(), {}

    def all_reduce(value):
        box[place.rank] = value.clone()
        barrier.wait()
        total = box[0] + box[1]
        barrier.wait()
        value.copy_(total)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "barrier", barrier.wait)

    def work(rank):
        place.rank = rank
        found[rank] = run_probe(jobs["two"], rank, 2)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found[0] == found[1]
    for reader in ("linear", "mlp"):
        both = (report["features"]["latents/code"][reader] for report in (alone, found[0]))
        one, two = both
        assert one["accuracy"] == pytest.approx(two["accuracy"], abs=0.02)
