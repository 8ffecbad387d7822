"""Photographs from a tenth of their pixels, with priors of smoothness and without."""

import pytest

from benchmarks.acceptance import acceptance


@pytest.mark.slow
def test_priors_of_smoothness_fill_in_what_is_between():
    module = acceptance("inpaint")
    module.check(module.run(0))
