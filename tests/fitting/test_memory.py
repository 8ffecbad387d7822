"""Memory that runs out costs lanes, then parts, then rows by name; never the run or its bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from pipeline import methods
from pipeline.fitting import Stream, fit_rows
from pipeline.fitting.memory import out_of_memory
from pipeline.fitting.method import Descend
from pipeline.fitting.units import Unit, fitted_unit
from pipeline.samples import load_samples
from schemas.samples import Code
from schemas.store import RowStatus
from tests.fitting.tables import picture_table

STARVED = """
import hashlib, json, resource, sys
import torch
torch.set_num_threads(1)
from pipeline.fitting import Stream
from pipeline.fitting.units import fitted_unit
from tests.fitting.test_memory import large, once

room, cut = int(sys.argv[1]), sys.argv[2]
method, samples = large(256, cut == "parts")
small, few = large(8)
list(Stream(small, {}, lanes=2).run(once(few)))  # what is loaded late is loaded
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
if room:
    resource.setrlimit(resource.RLIMIT_AS, (used + room * 2**20,) * 2)
stream = Stream(method, {}, lanes=8)
(unit,) = stream.run(once(samples))
(engine,) = stream.by_lanes.engines.values()
fitted = fitted_unit(method, unit)
bits = [fitted.rows[name].numpy().tobytes() for name in sorted(fitted.rows)]
print(json.dumps({
    "lanes": engine.lanes,
    "parts": engine.step.parts,
    "shortages": engine.shortages,
    "status": [s.name for s in fitted.status],
    "code": [c.value for c in fitted.code],
    "message": fitted.message[0],
    "bits": hashlib.sha256(b"".join(bits)).hexdigest(),
    "loss": fitted.loss.tolist(),
}))
"""


def large(width, parts=True):
    """8 pictures of 4,096 pixels: 3 layers of 256 take about 25 MB a lane and step."""
    samples = load_samples(picture_table([(64, 64)] * 8, held_out=0.0), "images")
    settings = {"width": width, "depth": 3, "steps": 1, "target_psnr": None}
    config = methods.configure("siren", "default", settings)
    method = methods.build("siren", config, samples.form)
    if parts:
        return method, samples
    (update,) = method.fit[0].updates

    def loss(bound, batch, draw):
        """Does not say that it is a mean over points."""
        return update.loss(bound, batch, draw)

    phase = replace(method.fit[0], updates=(Descend(loss, update.groups),))
    return replace(method, fit=(phase,)), samples


def once(samples):
    """Brings one unit, then none."""
    units = iter([Unit.of(0, samples, 1)])
    return lambda: next(units, None)


def starved(room, cut="parts"):
    """What a process says that has `room` MB left when it begins to fit."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back at once
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-c", STARVED, str(room), cut]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_lanes_halve_then_steps_go_in_parts_then_rows_fail_by_name():
    free = starved(0)
    assert (free["lanes"], free["parts"], free["shortages"]) == (8, 1, 0)
    some = starved(160)
    assert 2 <= some["lanes"] < 8
    assert some["shortages"] > 0
    assert some["parts"] == 1
    assert set(some["status"]) == {"OK"}
    assert some["bits"] == free["bits"]
    few = starved(45)
    assert few["lanes"] == 2
    assert few["parts"] > 1
    assert set(few["status"]) == {"OK"}
    assert few["loss"] == pytest.approx(free["loss"], rel=1e-3)
    none = starved(45, "whole")
    assert set(none["status"]) == {"FAILED"}
    assert set(none["code"]) == {"OOM"}
    assert "not enough memory for two rows at a time" in none["message"]
    assert "allocate" in none["message"]


@pytest.mark.parametrize("words", ["MemoryError", "torch", "allocator"])
def test_rows_that_shared_the_lanes_when_memory_ran_out_are_not_lost(words):
    """The third step of full lanes fails once: the rows beyond start again, to the same bits."""
    samples = load_samples(picture_table([(8, 8)] * 9), "images")
    settings = {"width": 8, "depth": 2, "steps": 5, "target_psnr": None}
    method = methods.build("siren", methods.configure("siren", "default", settings), samples.form)
    errors = {
        "MemoryError": MemoryError(),
        "torch": torch.OutOfMemoryError("CUDA out of memory"),
        "allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    }
    (update,) = method.fit[0].updates

    def loss(bound, batch, draw):
        if len(draw.keys) > 3 and int(draw.step.max()) >= 2:
            raise errors[words]
        return update.loss(bound, batch, draw)

    phase = replace(method.fit[0], updates=(Descend(loss, update.groups),))
    stream = Stream(replace(method, fit=(phase,)), {}, lanes=6)
    (unit,) = stream.run(once(samples))
    fitted = fitted_unit(method, unit)
    (engine,) = stream.by_lanes.engines.values()
    assert engine.lanes == 3
    whole = fit_rows(method, {}, samples, seed=1, lanes=6)
    assert fitted.status == whole.status == [RowStatus.OK] * 9
    assert fitted.code == [Code.NONE] * 9
    assert all(torch.equal(fitted.rows[n], whole.rows[n]) for n in whole.rows)
    assert not out_of_memory(RuntimeError("shapes do not match"))
