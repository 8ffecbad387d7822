"""How many lanes are fastest for a method on this machine: measured once, kept in a cache.

The number of lanes changes no row (from two on), so a measurement may decide it. Parts of a step
do change the last bits, and gain at most a tenth over the best number of lanes on a CPU: they are
for memory that runs out only.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.fields.bind import Tensors
from pipeline.fitting.lane_stream import LaneStream
from pipeline.fitting.lanes import Lanes
from pipeline.fitting.method import Method
from pipeline.fitting.paths import NUMERICS, default_lanes
from pipeline.fitting.units import Unit
from pipeline.samples import Samples

VERSION = 1
BUDGET_S = 2.0
CANDIDATES = {"cpu": (2, 4, 8, 16, 32, 64), "cuda": (16, 64, 256, 1024, 4096)}
STEPS = 2
"""Steps of a measurement; the first look at a row makes it one more."""
ENOUGH = 0.95
"""The fewest lanes win that reach this share of the best rate: they take less memory."""


def measured_lanes(
    method: Method,
    shared: Tensors,
    samples: Callable[[], Samples],
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> tuple[int, str]:
    """Lanes for a method on this device, and in words where the number comes from.

    `samples` gives some samples of the kind that will be fitted, when they are needed; `threads`
    are those of a worker.
    """
    if not method.fit:
        return default_lanes(method, device), "as there is nothing to fit"
    key, place = _key(method, device, threads), _place()
    known = _read(place).get(key, {}).get("lanes")
    if isinstance(known, int) and known >= 2:
        return known, "as measured earlier"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = lane_rates(method, shared, samples(), device)
    finally:
        torch.set_num_threads(before)
    best = max(rates.values())
    lanes = min(n for n, rate in rates.items() if rate >= ENOUGH * best)
    entry = {"lanes": lanes, "method": method.field.method, "rates": rates}
    _write(place, key, entry)
    return lanes, "as measured now"


def lane_rates(
    method: Method, shared: Tensors, samples: Samples, device: str | torch.device = "cpu"
) -> dict[int, float]:
    """Lane-steps a second by number of lanes, as far as `BUDGET_S` reaches; at least of two."""
    device = torch.device(device)
    phase = replace(method.fit[0], steps=STEPS, target=None)
    brief = replace(method, fit=(phase,))
    stream = LaneStream(brief, shared, lanes=2, device=device)
    classes = samples.shape_classes(phase.role, phase.size).tolist()
    kind = max(map(tuple, classes), key=lambda k: sum(map(abs, k)))
    index = [i for i, k in enumerate(classes) if tuple(k) == kind]
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    rates: dict[int, float] = {}
    began = clock()
    for count in CANDIDATES[device.type]:
        took = 0.0
        for _ in range(2):  # the first one also warms up
            unit = Unit.of(0, samples, 0)
            requests = stream.requests(unit, [index[k % len(index)] for k in range(count)])
            engine = Lanes(brief, phase, stream.shared, lanes=count, full=min(kind) > 0)
            start = clock()
            waiting = iter(requests)
            list(engine.run(lambda waiting=waiting: next(waiting, None)))
            took = clock() - start
            if engine.shortages:
                return rates or {2: 1.0}
        rates[count] = count * (STEPS + 1) / max(took, 1e-9)
        if clock() - began + 4 * took > BUDGET_S:  # the next one takes twice as long, twice
            break
    return rates


def _key(method: Method, device: str | torch.device, threads: int) -> str:
    """Of everything that the best number of lanes depends on."""
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{torch.backends.cpu.get_cpu_capability()}, {threads} threads"
    field = method.field
    about: list[Any] = [NUMERICS, torch.__version__, name, field.method]
    about += [field.config.model_dump(mode="json"), field.form.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def _place() -> Path | None:
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return None
    return base / "fieldmill" / "lanes.json"


def _read(place: Path | None) -> dict[str, Any]:
    """What is known; nothing of a file that is missing, damaged or of another version."""
    try:
        held = json.loads(place.read_text()) if place else {}
    except (OSError, ValueError):
        return {}
    known = held.get("known") if isinstance(held, dict) and held.get("version") == VERSION else None
    return known if isinstance(known, dict) else {}


def _write(place: Path | None, key: str, entry: dict[str, Any]) -> None:
    """Adds an entry in one move; where nothing can be written the next run measures again."""
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps({"version": VERSION, "known": {**_read(place), key: entry}}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, place)
    except OSError:
        return
