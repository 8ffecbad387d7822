"""The benchmark of GPUs runs from files to a store, and through every engine, without one."""

from __future__ import annotations

import pytest

pytest.importorskip(
    "triton",
    "3.9",
    reason="needs the interpreter of triton 3.9 (Linux on x86-64; make test installs it)",
)

from benchmarks import engine_gpu


def test_the_benchmark_runs_on_a_cpu(capsys):
    found = engine_gpu.main(["--device", "cpu", "--quick", "--count", "4"])
    job = found["job"]
    assert job["met"] == job["rows"] == 4
    assert job["lowest PSNR"] >= 30
    assert list(found["engines"]) == ["kernel, bf16", "lanes", "eager batched PyTorch"]
    assert all(row["image-steps/s"] > 0 for row in found["engines"].values())
    assert "of the large product" in capsys.readouterr().out


def test_crops_differ():
    crops = engine_gpu.some_crops(50)
    assert len({crop.tobytes() for crop in crops}) == 50
