"""What tests of several kinds of samples ask alike: of a row among others, of a run file."""

from __future__ import annotations

import pytest
import torch

from jobs.cli import main
from pipeline.fitting import choose_path, fit_rows
from pipeline.fitting.method import Method
from pipeline.samples import Samples


def assert_same_alone(
    method: Method, together: Samples, alone: Samples, row: int, fused: bool
) -> None:
    """Row `row` of some samples has the bits that it has by itself."""
    if fused and not choose_path(method)[0]:
        pytest.skip("this machine has no compiled loop")
    whole = fit_rows(method, {}, together, seed=0, fused=fused).rows
    one = fit_rows(method, {}, alone, seed=0, fused=fused).rows
    for name, value in whole.items():
        assert torch.equal(value[row : row + 1], one[name])


def assert_refused(file: str, cases: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each override stops a run before its first task, in these words."""
    for override, words in cases.items():
        assert main(["run", file, override, "prepared=/nowhere/p"]) == 2
        assert words in capsys.readouterr().err
