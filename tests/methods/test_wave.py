"""SIREN for the wave equation: acceptance on a line; a pulse in the plane."""

import pytest

from benchmarks.acceptance import _problems, acceptance


@pytest.mark.slow
def test_sines_solve_the_wave_equation():
    module = acceptance("wave")
    module.check(module.run(0))


@pytest.mark.slow
def test_the_preset_solves_an_equation_in_the_plane():
    source = {"at": [0.2, -0.1], "variance": 0.01}
    one = {"equation": "wave", "dimension": 2, "duration": 0.5, "sources": [source]}
    found = _problems.errors("wave", _problems.prepared([one]), 0, "plane")
    assert found["relative_l2"][0] < 0.1
