"""Reading weights: a common start lets a plain network read them; others are refused."""

from __future__ import annotations

import pytest

from benchmarks.sine_waves import COUNT, equivariant_r2, flat_r2, reordered_error, waves
from benchmarks.weight_space import digit_weights, flat_accuracy
from jobs.cli import main
from pipeline.downstream.probe import open_probe, run_probe
from schemas.probing import ProbeJob
from tests.jobs.pictures import write_pictures, write_run


@pytest.mark.slow
def test_a_plain_network_reads_digits_off_weights_only_with_a_common_start():
    """Digits by `start`; chance is 10 %."""
    common = flat_accuracy(digit_weights(1500, 0, start="common"))
    own = flat_accuracy(digit_weights(1500, 0, start="own"))
    assert common >= 0.9
    assert own <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_which_sine_a_network_draws_is_read_by_who_is_blind_to_the_order_of_units(seed):
    """DWSNets' first task at omega 10, each network from a start of its own."""
    rows = waves(COUNT, seed)
    assert rows.error < 1e-4
    found, network = equivariant_r2(rows)
    assert found >= 0.9
    assert flat_r2(rows) <= 0.5
    assert reordered_error(rows, network) <= 1e-5


@pytest.mark.slow
def test_probed_units_tell_what_weights_hide_at_the_frequency_of_siren():
    """At omega 30 the reader of weights alone explains little more than half."""
    rows = waves(COUNT, 0, omega=30.0)
    found, network = equivariant_r2(rows, probes=16)
    assert found >= 0.98
    assert reordered_error(rows, network) <= 1e-5


def test_weights_with_starts_of_their_own_are_refused_unless_the_reader_is_equivariant(tmp_path):
    write_pictures(tmp_path / "pictures", 24)
    run = write_run(tmp_path)
    assert main(["run", run]) in (0, 3)
    values = {
        "name": "weights",
        "source": str(tmp_path / "out" / "pictures.zarr"),
        "train": {"steps": 5},
        "shuffles": 1,
        "test": ["test"],
        "store": str(tmp_path / "probe"),
    }
    with pytest.raises(ValueError, match="every row started from random weights of its own"):
        open_probe(ProbeJob.model_validate(values))
    job = ProbeJob.model_validate({**values, "classifiers": ["linear", "equivariant"]})
    assert "shown as controls" in open_probe(job).notes[0]
    report = run_probe(job)
    assert {"linear", "equivariant"} < set(report["features"]["params"])
    raw = report["features"]["raw: pixels, 16 x 16"]
    assert raw["entries"] == 768
    assert "equivariant" not in raw
