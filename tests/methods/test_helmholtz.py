"""SIREN for the Helmholtz equation: acceptance on a line (in the plane: `make methods`)."""

import pytest

from benchmarks.acceptance import acceptance


@pytest.mark.slow
def test_sines_solve_the_helmholtz_equation():
    module = acceptance("helmholtz")
    module.check(module.run(0))
