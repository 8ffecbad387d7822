"""SIREN for surfaces: the acceptance; rows are their own; clouds without normals are refused."""

import pytest
import torch

from benchmarks.acceptance import _clouds, acceptance
from pipeline import methods
from pipeline.fitting import fit_rows
from schemas.samples import FormSpec

SMALL = {"width": 24, "depth": 2, "points": 48, "steps": 15}


def built(samples, **settings):
    config = methods.configure("siren_sdf", settings={**SMALL, **settings})
    return methods.build("siren_sdf", config, samples.form)


def test_normals_and_the_term_off_the_surface_make_solids_of_clouds():
    module = acceptance("siren_sdf")
    module.check(module.run(0))


def test_rows_do_not_depend_on_lanes_or_neighbors():
    names = ("torus.off", "shapes/bottle/bottle_000.stl", "shapes/bottle/bottle_001.stl")
    samples = _clouds.raw_clouds(names, surface=256)
    method = built(samples)
    two, many = (fit_rows(method, {}, samples, seed=0, lanes=n).rows for n in (2, 3))
    alone = _clouds.raw_clouds(names[2:], surface=256)
    alone = fit_rows(method, {}, alone, seed=0, lanes=2).rows
    for name in two:
        assert torch.equal(two[name], many[name])
        assert torch.equal(two[name][2], alone[name][0])


def test_clouds_without_normals_are_refused_with_the_way_out():
    form = FormSpec(kind="points", dims=3, normals=False)
    with pytest.raises(ValueError, match=r"needs a normal at every point.*'igr'.*normals: 0"):
        methods.build("siren_sdf", methods.configure("siren_sdf"), form)
    methods.build("siren_sdf", methods.configure("siren_sdf", settings={"normals": 0}), form)
