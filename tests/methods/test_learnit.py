"""Learned initializations: starts for pixels and projections, and what begins from them."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.acceptance import acceptance
from benchmarks.acceptance._digits import digit, digits, held_out_psnr
from jobs.cli import main
from pipeline import methods
from pipeline.evaluate.metrics import measure
from pipeline.fitting import fit_rows, pack, start_shared, train, unpack
from pipeline.fitting.method import row_names
from pipeline.samples import load_samples
from pipeline.stages.plan import shared_of_store
from schemas.base import Location
from schemas.samples import FormSpec
from tests.fitting.tables import picture_table
from tests.jobs.pictures import write_run

SMALL = {"width": 16, "depth": 2, "inner_pixels": 100, "omega_first": 12.0, "inner_rate": 2e-2}


def built(samples, name="learnit", **settings):
    common = SMALL if name == "learnit" else {}
    config = methods.configure(name, settings={**common, **settings})
    return methods.build(name, config, samples.form)


@pytest.mark.slow
def test_new_faces_in_two_steps():
    module = acceptance("learnit")
    module.check(module.run(0))


def test_digits_from_projections_in_a_few_steps_of_reptile():
    """No pixel is seen, of known digits or of new ones."""
    tables = digits(60, 14, 0), digits(20, 14, 1)
    known, new = (load_samples(table, "images") for table in tables)
    settings = {"network": "fourier", "frequencies": 32, "sigma": 1.5, "width": 32, "depth": 2}
    settings |= {"outer": "reptile", "measure": "radon", "angles": 8, "inner_steps": 8}
    settings |= {"inner_rate": 0.3, "rate": 3e-3, "train_steps": 150}
    method = built(known, **settings)
    shared = train(method, known, seed=0).shared

    def psnr(shared):
        rows = fit_rows(method, shared, new, seed=0).rows
        return held_out_psnr(method, shared, rows, new, tables[1])

    assert psnr(shared) >= psnr(start_shared(method, 0)) + 1.5


@pytest.mark.parametrize("outer", ["maml", "reptile"])
def test_siren_begins_where_a_learned_start_says(outer):
    """The same network by name: a fit by `siren` starts nearer from the learned start."""
    tables = digits(60, 14, 0), digits(12, 14, 1)
    known, new = (load_samples(table, "images") for table in tables)
    steps = 5 if outer == "reptile" else 2
    learner = built(known, outer=outer, inner_steps=steps, rate=2e-3, train_steps=120)
    shared = train(learner, known, seed=0).shared
    fit = {"steps": 3, "rate": 1e-4, "target_psnr": None, "start": "common", "omega_first": 12.0}
    siren = built(known, "siren", width=16, depth=2, **fit)
    own = start_shared(siren, 0)
    assert own.keys() == {n for n in shared if n.startswith("start.")}
    assert all(own[name].shape == shared[name].shape for name in own)
    found = []
    for start in ({name: shared[name] for name in own}, own):
        rows = fit_rows(siren, start, new, seed=0).rows
        found.append(float(measure("images", siren, start, rows, new, tables[1])["psnr"].mean()))
    assert found[0] >= found[1] + 2


def test_a_run_of_siren_begins_from_the_store_of_another(tmp_path, capsys):
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        Image.fromarray(digit(i, 14, random)).save(tmp_path / "pictures" / f"{i}.png")
    network = {"width": 8, "depth": 2}
    stores = [str(tmp_path / f"{name}.zarr") for name in ("learned", "begun")]
    learner = {"name": "learnit", **network, "train_steps": 5, "inner_pixels": 64}
    siren = {"name": "siren", **network, "start": "common", "steps": 1, "rate": 1e-9}
    siren |= {"shared_from": {"url": stores[0]}, "target_psnr": None}
    common = {"prepared": str(tmp_path / "prepared"), "ingest": {"color": "gray"}}
    for method, store in ((learner, stores[0]), (siren, stores[1])):
        assert main(["run", write_run(tmp_path, method=method, store=store, **common)]) == 0
    samples = load_samples(digits(2, 14, 0), "images")
    begun = built(samples, "siren", **network, start="common")
    learned, kept = (shared_of_store(Location(url=store), begun) for store in stores)
    assert all(torch.equal(learned[name], kept[name]) for name in learned)
    assert not torch.equal(
        learned["start.layers.0.weight"], start_shared(begun, 0)["start.layers.0.weight"]
    )
    wide = built(samples, "siren", width=9, depth=2, start="common")
    with pytest.raises(ValueError, match="settings that store was made with"):
        shared_of_store(Location(url=stores[0]), wide)
    capsys.readouterr()


def test_rows_are_the_same_alone_and_in_company_and_go_on_by_the_same_steps():
    table = picture_table([(12, 12), (16, 10), (12, 12), (20, 20)])
    samples = load_samples(table, "images")
    few, more = built(samples), built(samples, fit_steps=12)
    shared = start_shared(few, 0)
    many = fit_rows(few, shared, samples, seed=0, lanes=4)
    alone = fit_rows(few, shared, load_samples(table.slice(2, 1), "images"), seed=0).rows
    again = unpack(few, pack(few, many.rows))
    for name in row_names(few):
        assert torch.equal(alone[name][0], many.rows[name][2])
        assert torch.equal(again[name], many.rows[name])
    on = fit_rows(more, shared, samples, seed=0, lanes=4)
    assert (on.steps == 10).all()
    assert on.loss.mean() < many.loss.mean()
    rough = {**many.rows}
    found = [measure("images", few, shared, rows, samples, table) for rows in (rough, on.rows)]
    assert found[1]["psnr_fit"].mean() > found[0]["psnr_fit"].mean()


def test_wrong_settings_and_data_are_refused_by_name():
    form = FormSpec(kind="shapes", dims=3, signed=True)
    with pytest.raises(ValueError, match="learnit fits images; this dataset has shapes"):
        methods.build("learnit", methods.configure("learnit"), form)
    samples = load_samples(picture_table([(8, 8)]), "images")
    with pytest.raises(ValueError, match="fit_steps: 1 are fewer than the inner_steps 2"):
        built(samples, fit_steps=1)


def test_the_paper_has_two_settings():
    form = FormSpec(kind="images", channels=1, dims=2)
    pictures, scans = (methods.configure("learnit", preset) for preset in ("paper", "paper-ct"))
    assert (pictures.omega_first, pictures.inner_steps, pictures.inner_rate) == (200.0, 2, 1e-2)
    assert (scans.outer, scans.inner_steps, scans.inner_rate) == ("reptile", 12, 10.0)
    method = methods.build("learnit", scans, form)
    assert method.inner.order == 0
    frequencies = start_shared(method, 0)["encoding.frequencies"]
    assert float(frequencies.std()) * 2 * np.pi == pytest.approx(30, rel=0.1)
