"""Priors of every method on one finished store, beside real rows and normal distributions.

    python -m benchmarks.downstream_priors STORE --array code --steps 1500 --seeds 2

Prints, for each method, its figures and the CPU seconds of training. Each is also written as a job
of its own below --out, so that `export` shows its samples.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "mixture of 8": {"name": "gaussian", "mixture": 8},
    "flow": {"name": "flow", "width": 64},
    "ddpm": {"name": "ddpm", "width": 128, "depth": 3},
    "rectified_flow": {"name": "rectified_flow", "width": 128, "depth": 3},
    "wgan_gp": {"name": "wgan_gp"},
}
SHOWN = ("one_nn", "cov", "mmd", "fidelity", "density", "coverage", "nearest_learned", "nll",
         "rarest", "frechet", "kid", "empty")  # fmt: skip


def learning(name: str, steps: int) -> dict[str, Any]:
    """Keys of `train` that suit a method."""
    if name == "wgan_gp":
        return {"steps": steps, "batch": 64, "rate": 1e-3, "clip": None, "ema": 0.99}
    return {"steps": steps, "batch": 128, "rate": 2e-3}


def measured(options: argparse.Namespace, out: str, seed: int) -> Iterator[tuple]:
    """(method, space, set, figures, CPU seconds) of every method."""
    import torch

    from pipeline.downstream.lesson import open_lesson
    from pipeline.downstream.prior_stage import run_prior
    from pipeline.downstream.report import read_report
    from schemas.downstream import PriorJob

    torch.set_num_threads(1)
    for name, method in METHODS.items():
        if options.only and method["name"] not in options.only:
            continue
        job = PriorJob.model_validate(
            {
                "name": name.replace(" ", "-"),
                "source": {"url": options.store, "array": options.array},
                "store": f"{out}/{method['name']}-{seed}.zarr",
                "method": {**method, "conditional": options.conditional},
                "train": {**learning(method["name"], options.steps), "previews": 0},
                "sample": {"count": 16},
                "evaluate": {"rows": options.rows, "decoded": options.decoded},
                "seed": seed,
            }
        )
        started = time.process_time()
        run_prior(job)
        spent = time.process_time() - started
        lesson = open_lesson(job)
        report = read_report(lesson)
        for space, table in report["quality"]["table"].items():
            for which, figures in table.items():
                yield name, space, which, figures, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store")
    parser.add_argument("--array")
    parser.add_argument("--out", help="folder for the stores of samples; a temporary one")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--decoded", action="store_true", help="also what the rows decode to")
    parser.add_argument("--conditional", action="store_true", help="learn each class")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines: dict[tuple[str, str], list[tuple[dict, float]]] = {}
        for seed in range(options.seeds):
            for name, space, which, figures, spent in measured(
                options, options.out or folder, seed
            ):
                row = name if which == "prior" else f"({which})"
                cost = spent if which == "prior" else float("nan")
                lines.setdefault((space, row), []).append((figures, cost))
    tell(lines)


def tell(lines: dict[tuple[str, str], list[tuple[dict, float]]]) -> None:
    """A table for each space: medians over seeds."""
    from jobs.text import table

    for space in dict.fromkeys(space for space, _ in lines):
        shown = {row: of for (s, row), of in lines.items() if s == space}
        names = [
            n for n in SHOWN if any(n in figures for of in shown.values() for figures, _ in of)
        ]
        rows = []
        for row, of in sorted(shown.items(), key=lambda item: not item[0].startswith("(")):
            cells = [_median([figures.get(name) for figures, _ in of]) for name in names]
            rows.append([row, *cells, _median([cost for _, cost in of])])
        print(f"{space}:")
        print(table(rows, header=["", *names, "CPU s"]))


def _median(values: list[float | None]) -> str:
    known = [v for v in values if v is not None and v == v]
    return f"{statistics.median(known):.3g}" if known else "-"


if __name__ == "__main__":
    main()
