"""SIREN for the Helmholtz equation: acceptance on a line; what solving the output layer adds."""

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
