"""What benchmarks of downstream jobs share: a folder of run files, stores and reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs.downstream import load_job
from pipeline.downstream.lesson import Lesson, open_lesson
from pipeline.storage import open_objects
from pipeline.store.records import latest_final
from schemas.base import Location
from schemas.downstream import METHODS, GanJob, PriorJob, WassersteinGan
from schemas.probing import ProbeJob

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


class Bench:
    """Runs verbs of the main program in a folder; what is finished there is not done again."""

    def __init__(self, work: Path):
        self.work = work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def file(self, name: str, values: dict[str, Any]) -> str:
        """Writes a run file; returns its path."""
        path = self.work / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return str(path)

    def fieldmill(self, *words: str) -> None:
        """A command of the main program; what it prints is shown."""
        command = [sys.executable, "-m", "jobs.cli", *words]
        done = subprocess.run(command, cwd=self.work, check=False)
        if done.returncode not in (0, 3):
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")

    def fit(self, name: str, values: dict[str, Any]) -> str:
        """Runs `NAME.yaml`, in this process and without Ray; returns the URL of its store. One that
        is finished stays, whatever made it."""
        values = {"name": name, **values, "store": f"{name}.zarr", "resources": {"workers": 0}}
        path, store = self.file(name, values), Location(url=str(self.work / f"{name}.zarr"))
        if latest_final(open_objects(store))[0] is None:
            self.fieldmill("run", path)
        return store.url

    def probe(self, source: str, **keys: Any) -> dict[str, Any]:
        """What can be read off the rows of a run's store."""
        name = f"probe-{source}"
        values = {"name": name, "source": f"{source}.yaml", "store": name, **keys}
        path = self.file(name, values)
        self.fieldmill("probe", path)
        job = load_job(path, [], ProbeJob, folder=str(self.work))
        return json.loads((Path(job.store.url) / "probe.json").read_text())

    def prior(self, name: str, source: str, method: dict[str, Any], **keys: Any) -> Lesson:
        """A trained prior or GAN on a run's store, with its samples and report."""
        gan = method["name"] == "wgan_gp"
        values = {"name": name, "source": f"{source}.yaml", "method": method, **keys,
                  "store": f"{name}.zarr"}  # fmt: skip
        path = self.file(name, values)
        self.fieldmill("gan" if gan else "prior", path)
        model, methods = (GanJob, {"wgan_gp": WassersteinGan}) if gan else (PriorJob, METHODS)
        return open_lesson(load_job(path, [], model, methods=methods, folder=str(self.work)))


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def measured_rows(
    tables: dict[str, dict[str, dict[str, float]]], names: tuple[str, ...]
) -> list[list[Any]]:
    """A line of figures for each prior, below the lines that all of them share.

    Args:
        tables: By prior, the figures of each set of samples: `real`, `gaussian`, `prior`, ...
    """
    first = next(iter(tables.values()))
    shared = {"other real rows": first["real"], "Gaussian, full covariance": first["gaussian"]}
    for found in tables.values():
        if "by_class" in found:
            shared["Gaussian of each class"] = found["by_class"]
    lines = [*shared.items(), *((name, found["prior"]) for name, found in tables.items())]
    return [[name, *(_figure(found.get(key)) for key in names)] for name, found in lines]


def spanned_rows(
    tables: dict[str, list[dict[str, dict[str, float]]]], names: tuple[str, ...]
) -> list[list[Any]]:
    """`measured_rows` over seeds: mean (least to greatest) of each figure.

    Args:
        tables: By prior, a table for each seed.
    """
    first = next(iter(tables.values()))
    sets = {"other real rows": (first, "real"), "Gaussian, full covariance": (first, "gaussian")}
    sets |= {name: (found, "prior") for name, found in tables.items()}
    return [
        [name, *(_span([table[which].get(key) for table in found]) for key in names)]
        for name, (found, which) in sets.items()
    ]


def _span(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    mean = _figure(sum(known) / len(known))
    least, greatest = _figure(min(known)), _figure(max(known))
    return mean if least == greatest else f"{mean} ({least} to {greatest})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def probe_rows(words: str, report: dict[str, Any]) -> list[list[Any]]:
    """Rows, numbers, learned from, classifier, accuracy, labels shuffled."""
    rows = []
    for array, found in report["features"].items():
        name = array if array.startswith("raw") else words
        for reader, figures in found.items():
            if isinstance(figures, dict):
                shown = [f"{figures[key]:.3f}" for key in ("accuracy", "shuffled")]
                rows.append([name, found["entries"], report["learned"], reader, *shown])
    return rows


PROBED = ["rows", "numbers", "learned from", "classifier", "accuracy", "labels shuffled"]
"""Header of `probe_rows`."""
