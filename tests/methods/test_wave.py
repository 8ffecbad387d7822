"""SIREN for the wave equation: acceptance on a line."""

import pytest

from benchmarks.acceptance import acceptance


@pytest.mark.slow
def test_sines_solve_the_wave_equation():
    module = acceptance("wave")
    module.check(module.run(0))
