"""SIREN for the Helmholtz equation: acceptance on a line; the plane; the solved output layer."""

import pytest

from benchmarks.acceptance import _problems, acceptance


@pytest.mark.slow
def test_sines_solve_the_helmholtz_equation():
    module = acceptance("helmholtz")
    module.check(module.run(0))


def test_a_solved_output_layer_is_far_nearer_after_few_steps():
    source = {"at": [0.1], "variance": 0.01}
    one = {"equation": "helmholtz", "dimension": 1, "wavenumber": 6.0, "sources": [source]}
    table = _problems.prepared([one], reference=64)
    plain, solved = (
        _problems.errors("helmholtz", table, 0, steps=150, clip=0.01, solve=solve)
        for solve in (False, True)
    )
    assert plain["relative_l2"][0] > 0.2
    assert solved["relative_l2"][0] < 0.02
    assert solved["relative_l2_conjugate"][0] > 1


def test_the_preset_solves_an_equation_in_the_plane():
    source = {"at": [0.3, -0.2], "variance": 0.01, "amplitude": [0.6, -0.8]}
    one = {"equation": "helmholtz", "dimension": 2, "wavenumber": 5.0, "sources": [source]}
    found = _problems.errors("helmholtz", _problems.prepared([one]), 0, "plane-solved")
    assert found["relative_l2"][0] < 0.1
    assert found["relative_l2_conjugate"][0] > 1
