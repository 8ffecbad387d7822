"""Classes of shapes from their codes, beside a point network on the same shapes and split.

    python -m benchmarks.shape_classes --store CODES.zarr [--seeds 3] [--write]

CODES.zarr is a finished store of labeled shapes with its prepared dataset beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "shape_classes.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/shape_classes.md")
    arguments = parser.parse_args()
    from pipeline.downstream.probe import run_probe
    from schemas.probing import ProbeJob

    reports = []
    with tempfile.TemporaryDirectory(prefix="shape-classes-") as folder:
        for seed in range(arguments.seeds):
            job = ProbeJob.model_validate({
                "name": f"classes-{seed}", "source": arguments.store, "shuffles": 1, "seed": seed,
                "train": {"steps": 500}, "store": f"{folder}/{seed}",
                "classifiers": ["linear", "knn", "mlp", "kernel"],
            })  # fmt: skip
            reports.append(run_probe(job, told=lambda line: print(line, flush=True)))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    retrieved: dict[str, str] = {}
    for report in reports:
        for features, figures in report["features"].items():
            for name, value in figures.items():
                if isinstance(value, dict):
                    pair = (value["accuracy"], value["shuffled"])
                    found.setdefault((features, name), []).append(pair)
                elif name.startswith(("mAP@", "recall@")):
                    retrieved[f"{features}: {name}"] = f"{value:.3f}"
    means = {key: float(np.mean([a for a, _ in pairs])) for key, pairs in found.items()}
    codes = max(v for (features, _), v in means.items() if not features.startswith("raw"))
    network = max(v for (_, name), v in means.items() if name == "point network")
    raw = max(v for (features, _), v in means.items() if features.startswith("raw"))
    first = reports[0]
    text = f"""\
# Classes of shapes from codes

KiCad parts of {len(first["classes"])} kinds as DeepSDF codes; learned from {first["learned"]},
measured on {first["test"]}; always the largest class: {first["majority"]:.3f}. Accuracy, worst of
{arguments.seeds} seeds of training (mean). Made by
`python -m benchmarks.shape_classes --store CODES.zarr --write`.

| read from | classifier | accuracy | labels shuffled |
| --- | --- | --- | --- |
"""
    for (features, name), pairs in found.items():
        text += (
            f"| {features} | {name} | {min(a for a, _ in pairs):.3f} ({means[features, name]:.3f}) "
            f"| {np.mean([s for _, s in pairs]):.3f} |\n"
        )
    text += f"""
- Best on codes over the point network: {codes / network:.0%}; over the best of raw data:
  {codes / raw:.0%}.
- Retrieval: {"; ".join(f"{k} {v}" for k, v in retrieved.items())}.
"""
    print(text)
    if arguments.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
