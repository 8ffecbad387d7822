"""Priors on a real store: better than a normal distribution, resumed to the bit, stored as rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pipeline import store as stores
from pipeline.downstream.latents import distances
from pipeline.downstream.lesson import open_lesson
from pipeline.downstream.prior import draw_rows, load_prior, new_prior, open_prior, train_prior
from pipeline.downstream.prior_stage import check_prior, run_prior
from pipeline.downstream.report import read_report
from pipeline.downstream.set_metrics import one_nearest_accuracy
from pipeline.downstream.training import Hooks, Interrupted, read_state, train
from pipeline.evaluate.opened import open_store
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.downstream import PriorJob
from tests.downstream.small import code_store, ring, rings

QUICK = {"steps": 12, "batch": 32, "previews": 0}
NETWORK = {"name": "rectified_flow", "width": 32, "depth": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """1,200 codes of two entries on three circles."""
    url = str(tmp_path_factory.mktemp("stores") / "ring.zarr")
    codes, labels = ring(1200, 0)
    code_store(Location(url=url), codes, labels)
    return url


def job_of(read: str, store: str, **changes) -> PriorJob:
    values = {
        "name": "rings",
        "source": {"url": read, "array": "code"},
        "store": store,
        "method": NETWORK,
        "train": QUICK,
        "sample": {"count": 20, "steps": 8},
        "evaluate": {"rows": 0},
        **changes,
    }
    return PriorJob.model_validate(values)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory) -> str:
    """1,800 codes of 16 entries on three circles apart."""
    url = str(tmp_path_factory.mktemp("stores") / "rings.zarr")
    code_store(Location(url=url), *rings(1800, 0))
    return url


@pytest.mark.parametrize(
    ("method", "steps", "most"),
    [
        ({"name": "gaussian"}, 1, 1.0),
        ({"name": "gaussian", "mixture": 24}, 1, 0.8),
        ({"name": "flow", "width": 64}, 320, 0.87),
        ({"name": "rectified_flow", "width": 64, "depth": 3}, 700, 0.87),
        ({"name": "ddpm", "width": 64, "depth": 3}, 800, 0.87),
    ],
    ids=["normal", "mixture", "flow", "rectified_flow", "ddpm"],
)
def test_circles_are_learned_better_than_by_a_normal_distribution(
    clusters, tmp_path, method, steps, most
):
    """Without labels; a normal distribution fills the circles and the space between them, and so
    is told from held-out rows nearly always (the first case: or the test would be void)."""
    job = job_of(
        clusters,
        str(tmp_path / "p.zarr"),
        method={**method, "conditional": False},
        train={"steps": steps, "batch": 128, "rate": 3e-3, "previews": 0},
        sample={"steps": 40},
    )
    lesson = open_lesson(job)
    train_prior(lesson)
    held = lesson.normalization.forth(torch.from_numpy(rings(400, 99)[0]))
    made, _ = draw_rows(load_prior(lesson), lesson, 0, 400)
    found = one_nearest_accuracy(
        distances(made, made), distances(made, held), distances(held, held)
    )
    assert found <= most
    assert (found > 0.93) == (method == {"name": "gaussian"})


def test_classes_are_drawn_apart(source, tmp_path):
    """A conditional prior draws each circle when it is asked for it, others when it is not."""
    job = job_of(
        source,
        str(tmp_path / "c.zarr"),
        method={"name": "rectified_flow", "width": 48, "depth": 2},
        train={"steps": 600, "batch": 128, "rate": 3e-3, "previews": 0},
        sample={"count": 30, "classes": ["ring2", "ring0"], "guidance": 1.5, "steps": 20},
    )
    run_prior(job)
    index = open_store(job.store).index
    assert index["label"].to_pylist()[:4] == ["ring2", "ring0", "ring2", "ring0"]
    codes = stores.open_arrays(job.store).latents("code", range(30))
    radius = np.linalg.norm(codes, axis=1)
    assert abs(np.median(radius[0::2]) - 3) < 0.5
    assert abs(np.median(radius[1::2]) - 1) < 0.5


# --- training ---------------------------------------------------------------------------------


class _Stop:
    """Asks to stop after a number of steps."""

    def __init__(self, after: int):
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("method", [NETWORK, {"name": "wgan_gp", "width": 16}])
@pytest.mark.parametrize("resident_bytes", [2**20, 0], ids=["resident", "streamed"])
def test_resumed_training_ends_at_equal_bytes(source, tmp_path, method, resident_bytes):
    def lesson(name):
        options = {"url": source, "array": "code", "resident_bytes": resident_bytes}
        learning = {**QUICK, "steps": 40, "batch": 256}
        return open_lesson(
            job_of(source, str(tmp_path / name), method=method, source=options, train=learning)
        )

    train_prior(lesson("whole"))
    with pytest.raises(Interrupted, match="stopped after step 17 of 40"):
        train_prior(lesson("cut"), hooks=Hooks(stop=_Stop(17)))
    note, _ = read_state(lesson("cut").files.get("checkpoint.safetensors"))
    assert note["step"] == 17
    train_prior(lesson("cut"))
    whole, cut = (lesson(name).files for name in ("whole", "cut"))
    assert whole.get("model.safetensors") == cut.get("model.safetensors")
    assert whole.done()["log"] == cut.done()["log"]


def test_two_ranks_take_the_steps_of_one(source, tmp_path, monkeypatch):
    """The parts of a batch, and the randomness of its places, are those of one worker."""
    import threading

    import torch.distributed as dist

    learning = {**QUICK, "batch": 33, "steps": 6}
    lesson = open_lesson(job_of(source, str(tmp_path / "a"), train=learning))
    alone = new_prior(lesson)
    train(alone, alone.updates, lesson.batches(0, 1, "cpu"), lesson.job.train, seed=0)
    # two threads meet in an all-reduce of their own
    barrier, box = threading.Barrier(2), {}
    place = threading.local()

    def all_reduce(value):
        box[place.rank] = value.clone()
        barrier.wait()
        total = box[0] + box[1]
        barrier.wait()
        value.copy_(total)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    models = [new_prior(lesson), new_prior(lesson)]
    batches = [lesson.batches(rank, 2, "cpu") for rank in (0, 1)]

    def work(rank):
        place.rank = rank
        model = models[rank]
        train(model, model.updates, batches[rank], lesson.job.train, seed=0, rank=rank, world=2)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(models[0].state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(models[0].state_dict()[name], models[1].state_dict()[name])


def test_a_step_that_is_not_finite_is_told(source, tmp_path):
    lesson = open_lesson(job_of(source, str(tmp_path / "a"), train={**QUICK, "rate": 1e30}))
    with pytest.raises(RuntimeError, match=r"diverged at step \d+ .*lower train.rate"):
        train_prior(lesson)


# --- samples ----------------------------------------------------------------------------------


def test_samples_are_a_store_like_any_other(source, tmp_path):
    job = job_of(
        source,
        str(tmp_path / "s.zarr"),
        method={"name": "gaussian", "mixture": 2},
        sample={"count": 11, "unit_rows": 4},
        evaluate={"rows": 40, "decoded": False},
    )
    check_prior(job)
    run_prior(job)
    assert stores.verify(open_objects(job.store), full=True).ok
    opened, parent = open_store(job.store), open_store(source)
    assert len(opened) == 11
    assert opened.spec.layers == parent.spec.layers
    assert opened.spec.init["parent"] == "known codes"
    assert opened.spec.init["parent_hash"] == stores.store_hash(
        open_objects(parent.reader.location)
    )
    for name, value in parent.reader.shared().items():
        assert np.array_equal(opened.reader.shared()[name], value)
    values = opened.values("sample-000003", torch.zeros(5, 3))
    assert torch.isfinite(values["sdf"]).all()
    line = opened.line(3)
    assert line["origin"] == "sampled"
    code = opened.reader.latents("code", [3])[0]
    near = parent.reader.latents("code", [line["nearest_row"]])[0]
    scale = open_lesson(job).normalization.scale.numpy()
    assert line["nearest_distance"] == pytest.approx(
        float(np.linalg.norm((code - near) / scale)), rel=1e-3, abs=1e-5
    )
    assert line["nearest_row"] < 900  # a row that was learned from
    before = stores.store_hash(open_objects(job.store))
    run_prior(job)  # nothing left to do
    assert stores.store_hash(open_objects(job.store)) == before
    report = read_report(open_lesson(job))
    table = report["quality"]["table"]["code"]
    assert set(table) == {"real", "prior", "gaussian", "by_class"}
    assert 0.3 < table["real"]["one_nn"] < 0.7
    assert table["prior"]["nll"] < table["gaussian"]["nll"]
    assert report["principal_components"]["entries"] == 2
    json.dumps(report, allow_nan=False)
    lesson, prior = open_prior(job.store)
    rows, _ = draw_rows(prior, lesson, 2, 5)
    again = lesson.normalization.back(rows).numpy()
    np.testing.assert_allclose(again, opened.reader.latents("code", [2, 3, 4]), atol=1e-6)
    with pytest.raises(ValueError, match="was not made by a prior"):
        open_prior(source)


def test_density_of_samples_is_that_of_stored_rows(source, tmp_path):
    job = job_of(
        source, str(tmp_path / "d.zarr"), method={"name": "gaussian", "conditional": False}
    )
    run_prior(job)
    lesson = open_lesson(job)
    values = lesson.values.double()
    normal = torch.distributions.MultivariateNormal(
        values.mean(0), torch.cov(values.T, correction=0)
    )
    reader = stores.open_arrays(job.store)
    codes = torch.from_numpy(reader.latents("code", range(20))).double()
    expected = normal.log_prob(codes).numpy()
    found = reader.index["log_density"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=0.1)  # the covariance is shrunk a little


def test_other_samples_are_refused_and_replaced_without_training_again(source, tmp_path):
    url = str(tmp_path / "r.zarr")
    run_prior(job_of(source, url))
    other = job_of(source, url, sample={"count": 9, "steps": 8})
    with pytest.raises(ValueError, match=r"sample\.count was 20, is 9"):
        check_prior(other)
    check_prior(other, replace=True)
    assert run_prior(other)["steps"] == 0
    assert len(open_store(url)) == 9
    with pytest.raises(ValueError, match=r"train\.steps was 12, is 13"):
        check_prior(job_of(source, url, train={**QUICK, "steps": 13}))


def test_samples_of_a_source_that_has_changed_are_refused(source, tmp_path, monkeypatch):
    url = str(tmp_path / "r.zarr")
    run_prior(job_of(source, url))
    monkeypatch.setattr("pipeline.downstream.lesson.store_hash", lambda objects: "0" * 64)
    with pytest.raises(ValueError, match=r"has changed since the samples in .* were drawn"):
        check_prior(job_of(source, url))


# --- bad input --------------------------------------------------------------------------------


def test_what_nothing_can_be_learned_from_is_refused(source, tmp_path):
    def check(message, **changes):
        with pytest.raises(ValueError, match=message):
            check_prior(job_of(source, str(tmp_path / "bad"), **changes))

    def of(**keys):
        return {"url": source, **keys}

    check("no array 'cod'; it holds latents/code", source=of(array="cod"))
    check("0 rows are left of split train, radius=", source=of(where={"radius": [90, None]}))
    check("no row has label", source=of(label=["square"]))
    check("no column 'radios'; did you mean 'radius'", source=of(where={"radios": [0, 1]}))
    check("no class 'ring9'; the prior has ring0", sample={"classes": ["ring9"]})
    check("learns no classes", method={**NETWORK, "conditional": False},
          sample={"classes": ["ring0"]})  # fmt: skip
    check("have 2 principal components, 5 were", method={
        **NETWORK, "normalize": "whiten", "components": 5})  # fmt: skip
    check("components has no effect without", method={**NETWORK, "components": 1})
    check("guidance has no effect with flow", method="flow", sample={"guidance": 2})
    check("guidance has no effect on a prior that learns no classes",
          method={**NETWORK, "conditional": False}, sample={"guidance": 2})  # fmt: skip
    check("eta has no effect with rectified_flow", sample={"eta": 0.5})
    check("'label' holds string and cannot be compared with 1", source=of(where={"label": [1, 3]}))
    check("'radius' holds .* cannot be compared with 'far'", source=of(where={"radius": "far"}))
    for betas in ([0.5, 0.1], [-1, 0.5], [0.1, 5]):
        check("must ascend, above 0 and below 1", method={"name": "ddpm", "betas": betas})
    check("evaluate.split: train is learned from", evaluate={"rows": 9, "split": ["train"]})
    more = job_of("a.zarr", "b.zarr", source={"url": "a.zarr", "split": ["train", "val"]})
    assert more.evaluate.split == ("test",)
    assert PriorJob.model_validate_json(more.model_dump_json()) == more


def test_rows_that_are_not_finite_are_named(tmp_path):
    codes, labels = ring(60, 0)
    codes[13, 1] = np.inf
    code_store(Location(url=str(tmp_path / "inf.zarr")), codes, labels)
    with pytest.raises(ValueError, match="row 13 has values that are not finite"):
        check_prior(job_of(str(tmp_path / "inf.zarr"), str(tmp_path / "o")))


def test_a_condition_needs_labels(tmp_path):
    codes, _ = ring(60, 0)
    url = str(tmp_path / "plain.zarr")
    code_store(Location(url=url), codes)
    with pytest.raises(ValueError, match="0 classes, and 45 of 45 rows without a label"):
        check_prior(job_of(url, str(tmp_path / "o"), method={**NETWORK, "conditional": True}))


def test_weights_of_own_starts_are_refused(tmp_path):
    from schemas.store import ArraySpec
    from tests.store.toy import finished, make_plan

    arrays = (ArraySpec(name="params", shape=(50,), dims=("param",)),)
    plan = make_plan((40,), arrays=(*arrays, *make_plan().arrays[3:]))
    finished(Location(url=str(tmp_path / "own.zarr")), plan)
    with pytest.raises(ValueError, match=r"every row started from random weights.*start: common"):
        check_prior(job_of(str(tmp_path / "own.zarr"), str(tmp_path / "o"),
                           source={"url": str(tmp_path / "own.zarr")}))  # fmt: skip
