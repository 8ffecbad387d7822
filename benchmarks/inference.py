"""New shapes by three ways of inference: learned steps, a code by descent, one pass of an encoder.

    python -m benchmarks.inference [--quick] [--write]

MetaSDF, DeepSDF and an Occupancy Network learn from the same 128 procedural boxes, then take 32 new
ones by `fit_rows` as a run calls it. IoU is at held-out points uniform in the box. MetaSDF, DeepSDF
see distances at points, the encoder 200 noisy points of the surface. One thread, CPU seconds, of
inference the median of five.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.acceptance import acceptance  # noqa: E402
from benchmarks.acceptance._shapes import held_out_iou  # noqa: E402
from benchmarks.acceptance._solids import one_box, table  # noqa: E402
from benchmarks.engine_baselines import timed  # noqa: E402
from benchmarks.engine_machine import machine  # noqa: E402
from pipeline import methods  # noqa: E402
from pipeline.fitting import choose_path, fit_rows, train  # noqa: E402
from pipeline.samples import load_samples  # noqa: E402

DEEPSDF = {"code": 16, "width": 64, "train_steps": 1500, "batch": 32, "fit_steps": 200}


def settings() -> dict[str, dict]:
    """Of each method: about as much training as a core does in a quarter of a minute."""
    return {
        "metasdf": acceptance("metasdf").SETTINGS,
        "deepsdf": DEEPSDF,
        "occnet": acceptance("occnet").SETTINGS,
    }


def measured(name: str, keys: dict, known, new, rounds: int) -> dict[str, float]:
    """Training and inference of one method, in CPU seconds, and what came of it."""
    method = methods.build(name, methods.configure(name, settings=keys), known.form)
    found = {}

    def learn():
        found["shared"] = train(method, known, seed=0).shared

    learned = timed(learn)["cpu"]
    fused, path = choose_path(method)

    def infer():
        found["rows"] = fit_rows(method, found["shared"], new, seed=0, fused=fused).rows

    infer()
    seconds = statistics.median(timed(infer)["cpu"] for _ in range(rounds))
    iou = held_out_iou(
        method, found["shared"], found["rows"], new, level=method.field.output["level"]
    )
    return {
        "IoU, mean": round(float(iou.mean()), 4),
        "IoU, median": round(float(iou.median()), 4),
        "ms a shape": round(1e3 * seconds / len(new), 2),
        "training, s": round(learned, 1),
        "numbers a shape": sum(value[0].numel() for value in found["rows"].values()),
        "path": path,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: whether it runs at all")
    parser.add_argument("--write", action="store_true", help="write results/inference.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    boxes = table([one_box(random) for _ in range(160)], seed=0)
    known, new = (load_samples(t, "shapes") for t in (boxes.slice(0, 128), boxes.slice(128)))
    found = {}
    for name, keys in settings().items():
        short = {"train_steps": 5} if arguments.quick else {}
        rounds = 1 if arguments.quick else 5
        found[name] = measured(name, {**keys, **short}, known, new, rounds)
        print(name, found[name], flush=True)
    found["machine"] = machine("as each method's `path`")
    if arguments.write and not arguments.quick:
        path = Path(__file__).parent / "results" / "inference.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
