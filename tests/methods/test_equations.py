"""What holds for every method that solves equations: rows are their own; what is refused."""

import numpy as np
import pytest
import torch

from benchmarks.acceptance import _problems
from pipeline import methods
from pipeline.evaluate.metrics import measure
from pipeline.fitting import fit_rows
from pipeline.samples import load_samples
from schemas.samples import FormSpec

SMALL = {"width": 16, "depth": 2, "steps": 8, "points": 32}
OWN = {"helmholtz": ({"wavenumber": 7.0}, 2), "wave": ({"duration": 0.4}, 1)}
"""Keys of a problem of each equation, and the channels of its answer."""


def prepared(name, count=3, d=1):
    sources = [{"at": [0.1 * i] * d, "variance": 0.01} for i in range(count)]
    one = {"equation": name, "dimension": d, **OWN[name][0]}
    problems = [{**one, "sources": sources[: i + 1]} for i in range(count)]
    return _problems.prepared(problems, reference=16)


def built(name, samples, **settings):
    return methods.build(
        name, methods.configure(name, settings={**SMALL, **settings}), samples.form
    )


@pytest.mark.parametrize(
    ("name", "d", "settings"),
    [
        ("helmholtz", 1, {}),
        ("wave", 1, {}),
        ("helmholtz", 2, {"norm": "absolute"}),
        ("wave", 2, {"norm": "absolute"}),
        ("helmholtz", 2, {"clip": 0.01, "solve": True}),
        ("wave", 2, {"clip": 0.01}),
    ],
)
def test_rows_do_not_depend_on_lanes_or_neighbors(name, d, settings):
    table = prepared(name, d=d)
    samples = load_samples(table, "equations")
    assert samples.form.dims == d + (name == "wave")
    method = built(name, samples, **settings)
    together = fit_rows(method, {}, samples, seed=0).rows
    few = fit_rows(method, {}, samples, seed=0, lanes=2).rows
    alone = fit_rows(method, {}, load_samples(table.slice(2, 1), "equations"), seed=0).rows
    for key in together:
        assert torch.equal(together[key][2], alone[key][0])
        assert torch.equal(together[key], few[key])


@pytest.mark.parametrize(("name", "other"), [("helmholtz", "wave"), ("wave", "helmholtz")])
def test_other_data_are_refused(name, other):
    config = methods.configure(name)
    with pytest.raises(ValueError, match=f"{name} solves equations; this dataset has images"):
        methods.build(name, config, FormSpec(kind="images", channels=3, dims=2))
    form = FormSpec(kind="equations", equation=other, dims=2, channels=OWN[other][1])
    with pytest.raises(ValueError, match=f"try method '{other}', or ingest.equation: {name}"):
        methods.build(name, config, form)
    with pytest.raises(ValueError, match=r"siren .*equations"):
        methods.build("siren", methods.configure("siren"), form)


@pytest.mark.parametrize("name", OWN)
def test_metrics_know_the_answer_from_nothing(name):
    """A field of zeros is as far away as the answer is long."""
    table = prepared(name)
    samples = load_samples(table, "equations")
    method = built(name, samples)
    rows = fit_rows(method, {}, samples, seed=0).rows
    zeros = {key: torch.zeros_like(value) for key, value in rows.items()}
    found = measure("equations", method, {}, zeros, samples, table)
    assert np.allclose(found["relative_l2"], 1)
    spec = method.field.layers
    assert spec[0]["scale"] == method.field.config.omega_first
    assert "init" in spec[0]
