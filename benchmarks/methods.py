"""Runs the acceptance of the methods over several seeds and writes `results/methods.md`.

python -m benchmarks.methods [NAME ...] [--seeds 3] [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "method",
    "data",
    "metric",
    "ours: worst (mean)",
    "control: best (mean)",
    "control lacks",
    "paper's claim, reproduced in kind",
    "s",
)
HEAD = f"""\
# What each method does on held-out data

One command writes this table: `python -m benchmarks.methods --write` (`make methods`). "Ours" and
"control" are the worst and the mean of the seeds; the control is the same run with one part
removed. Seconds are CPU time of both together, one thread.

| {" | ".join(COLUMNS)} |
|{" --- |" * len(COLUMNS)}
"""


def main() -> int:
    """Each seed runs in a process of its own, so that none warms the next one up."""
    from benchmarks.acceptance import acceptance, names

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/methods.md")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(json.dumps(one(arguments.methods[0], arguments.seed)))
        return 0
    known = RESULTS / "methods.json"
    table = json.loads(known.read_text()) if known.exists() else {}
    failed = []
    for name in arguments.methods or names():
        runs = []
        for seed in range(arguments.seeds):
            command = [sys.executable, "-m", "benchmarks.methods", name, "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.stderr.write(done.stderr)
                failed.append(f"{name}/{seed}")
                continue
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, seed, runs[-1], flush=True)
            if runs[-1]["missed"]:
                failed.append(f"{name}/{seed}")
        if runs:
            module = acceptance(name)
            words = {k: getattr(module, k.upper()) for k in ("data", "metric", "control", "claim")}
            table[name] = {**words, "higher": getattr(module, "HIGHER", True), "runs": runs}
    text = HEAD + "".join(line(name, entry) for name, entry in sorted(table.items()))
    print(text)
    if arguments.write:
        known.write_text(json.dumps(table, indent=1) + "\n")
        (RESULTS / "methods.md").write_text(text)
    if failed:
        print(f"gates missed: {', '.join(failed)}", file=sys.stderr)
    return 3 if failed else 0


def one(name: str, seed: int) -> dict:
    """Figures of one seed, and the gate that it missed, if any."""
    import torch

    from benchmarks.acceptance import acceptance

    torch.set_num_threads(1)
    module = acceptance(name)
    began = time.process_time()
    figures = module.run(seed)
    seconds = time.process_time() - began
    missed = ""
    try:
        module.check(figures)
    except AssertionError as error:
        missed = str(error) or "a gate"
    return {
        "ours": round(figures.ours, 5),
        "control": round(figures.control, 5),
        "also": {key: round(float(value), 5) for key, value in figures.also.items()},
        "seconds": round(seconds, 1),
        "missed": missed,
    }


def line(name: str, entry: dict) -> str:
    """One row of the table."""
    runs, worst, best = entry["runs"], min, max
    if not entry["higher"]:
        worst, best = max, min
    ours, control = ([run[key] for run in runs] for key in ("ours", "control"))
    seconds = sum(run["seconds"] for run in runs) / len(runs)
    cells = [
        name,
        entry["data"],
        entry["metric"],
        f"{worst(ours):.4g} ({sum(ours) / len(ours):.4g})",
        f"{best(control):.4g} ({sum(control) / len(control):.4g})",
        entry["control"],
        entry["claim"],
        f"{seconds:.0f}",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.exit(main())
