"""Bits of rows whose matrices end anywhere in memory: widths that no vector register divides."""

import os

import pytest
import torch

from pipeline import methods
from pipeline.fitting import fit_rows
from pipeline.samples import load_samples
from tests.fitting.tables import box_table


@pytest.mark.parametrize("width", [29, 35])
def test_odd_widths_give_the_same_bits_for_any_number_of_lanes(width):
    """Without MKL_CBWR=...,STRICT, MKL picks kernels by the alignment of each sample's matrix."""
    assert os.environ["MKL_CBWR"].endswith(",STRICT")
    samples = load_samples(box_table(5, points=512), "shapes")
    config = methods.configure("sdf", "default", {"width": width, "steps": 25, "points": 96})
    method = methods.build("sdf", config, samples.form)
    two, three, five = (fit_rows(method, {}, samples, seed=0, lanes=n).rows for n in (2, 3, 5))
    assert all(torch.equal(two[name], three[name]) for name in two)
    assert all(torch.equal(two[name], five[name]) for name in two)
