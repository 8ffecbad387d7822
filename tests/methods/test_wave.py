"""SIREN for the wave equation: acceptance; rows are their own; what is refused."""

import numpy as np
import pytest
import torch

from benchmarks.acceptance import _problems, acceptance
from pipeline import methods
from pipeline.fitting import fit_rows
from pipeline.samples import load_samples
from schemas.samples import FormSpec

SMALL = {"width": 16, "depth": 2, "steps": 8, "points": 32}


def problems(count=3, d=1):
    sources = [{"at": [0.1 * i] * d, "variance": 0.01} for i in range(count)]
    one = {"equation": "wave", "dimension": d, "duration": 0.3 + 0.1 * d}
    return [{**one, "sources": sources[: i + 1]} for i in range(count)]


def built(samples, **settings):
    config = methods.configure("wave", settings={**SMALL, **settings})
    return methods.build("wave", config, samples.form)


@pytest.mark.slow
def test_sines_solve_the_wave_equation():
    module = acceptance("wave")
    module.check(module.run(0))


@pytest.mark.parametrize(("d", "norm"), [(1, "square"), (2, "absolute")])
def test_rows_do_not_depend_on_lanes_or_neighbors(d, norm):
    table = _problems.prepared(problems(d=d), reference=16)
    samples = load_samples(table, "equations")
    assert samples.form.dims == 1 + d
    method = built(samples, norm=norm)
    together = fit_rows(method, {}, samples, seed=0).rows
    few = fit_rows(method, {}, samples, seed=0, lanes=2).rows
    alone = fit_rows(method, {}, load_samples(table.slice(2, 1), "equations"), seed=0).rows
    for name in together:
        assert torch.equal(together[name][2], alone[name][0])
        assert torch.equal(together[name], few[name])


def test_other_data_are_refused():
    config = methods.configure("wave")
    with pytest.raises(ValueError, match="wave solves equations; this dataset has images"):
        methods.build("wave", config, FormSpec(kind="images", channels=3, dims=2))
    other = FormSpec(kind="equations", equation="helmholtz", dims=2, channels=2)
    with pytest.raises(ValueError, match="try method 'helmholtz'"):
        methods.build("wave", config, other)
    with pytest.raises(ValueError, match=r"siren .*equations"):
        methods.build("siren", methods.configure("siren"), other)


def test_metrics_know_the_answer_from_nothing():
    """A field of zeros is as far away as the answer is long."""
    table = _problems.prepared(problems(), reference=16)
    samples = load_samples(table, "equations")
    method = built(samples)
    rows = fit_rows(method, {}, samples, seed=0).rows
    from pipeline.evaluate.metrics import measure

    zeros = {name: torch.zeros_like(value) for name, value in rows.items()}
    found = measure("equations", method, {}, zeros, samples, table)
    assert np.allclose(found["relative_l2"], 1)
    spec = method.field.layers
    assert spec[0]["scale"] == method.field.config.omega_first
    assert "init" in spec[0]
