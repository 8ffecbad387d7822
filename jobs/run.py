"""The verbs that compute: run, and its stages one by one."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterator
from typing import Any

from jobs import text
from jobs.config import load_run
from jobs.driver import Driver
from jobs.errors import GateFailed
from jobs.units import stopping
from jobs.workers import refuse_without_gpu
from schemas.run import LabelRule, Run
from schemas.store import PRIVATE

SHOWN = 20
"""Rejected samples that a summary names."""
STAGES = ("ingest", "train", "fit", "evaluate")


def do_run(arguments: argparse.Namespace) -> int:
    return _stages(arguments, STAGES)


def do_ingest(arguments: argparse.Namespace) -> int:
    return _stages(arguments, ("ingest",))


def do_train(arguments: argparse.Namespace) -> int:
    return _stages(arguments, ("train",))


def do_fit(arguments: argparse.Namespace) -> int:
    return _stages(arguments, ("fit",))


def do_evaluate(arguments: argparse.Namespace) -> int:
    return _stages(arguments, ("evaluate",))


def do_report(arguments: argparse.Namespace) -> int:
    from pipeline import stages

    run = run_of(arguments)
    return conclude(run, {}, stages.summarize(run), arguments)


def run_of(arguments: argparse.Namespace) -> Run:
    """The run of a verb's arguments."""
    return load_run(
        arguments.run_file,
        arguments.overrides,
        limit=getattr(arguments, "limit", None),
        ingest_only=arguments.verb == "ingest",
    )


def _stages(arguments: argparse.Namespace, names: tuple[str, ...]) -> int:
    run = run_of(arguments)
    with stopping() as stop:
        driver = Driver(run, stop, update=arguments.update, replace=arguments.replace)
        try:
            summary = execute(driver, names)
        finally:
            driver.disconnect()
    if summary is not None:
        return conclude(run, driver.figures, summary, arguments)
    for line in stage_lines(driver.figures):
        text.say(line)
    return 0


def execute(driver: Driver, names: tuple[str, ...]) -> Any:
    """Runs the stages in order; returns the summary of the store if they got so far."""
    from pipeline import stages

    summary = None
    if names != ("ingest",):
        if driver.local:
            refuse_without_gpu(driver.run.resources)
        driver.refuse_other_run()
    if "ingest" in names:
        if len(names) > 1:
            stages.refuse_unfit(driver.run)
        meta = driver.ingest()
        text.say(
            f"prepared: {meta.rows} samples ({text.counts(meta.counts)}) in "
            f"{driver.run.prepared_location.url}"
        )
        if driver.run.dataset.label != LabelRule():
            without = meta.rows - sum(meta.labels.values())
            if without:
                text.warn(f"  note: dataset.label gives {without} of {meta.rows} samples no label")
    if "train" in names:
        driver.train()
    if "fit" in names:
        summary = driver.fit()
    if "evaluate" in names:
        summary = driver.evaluate() or summary
    return summary


def conclude(
    run: Run, figures: dict[str, dict[str, Any]], summary: Any, arguments: argparse.Namespace
) -> int:
    """Prints the summary of a finished run; raises GateFailed when too much of it failed."""
    text.say()
    text.say(f"{run.name}: {run.store.url}")
    for line in summary_lines(run, figures, summary):
        text.say(line)
    unusable, total = unusable_share(summary)
    if total and unusable / total > run.max_failed:
        error = GateFailed(
            f"{unusable} of {total} samples have no usable row, more than max_failed = "
            f"{run.max_failed:g} allows"
        )
        words = [arguments.run_file, *arguments.overrides]
        if arguments.limit:
            words += ["--limit", str(arguments.limit)]
        if summary.rejected.get("rejected", 0) / total <= run.max_failed:
            error.recover = shlex.join(["fieldmill", "retry", "--failed", *words])
        else:  # samples that ingest rejected have no row: another fit does not help
            enough = math.ceil(100 * unusable / total) / 100
            error.recover = shlex.join(["fieldmill", "run", *words, f"max_failed={enough:g}"])
        raise error
    return 0


def unusable_share(summary: Any) -> tuple[int, int]:
    """Samples without a usable row, and all samples that should have had one."""
    failed = sum(n for name, n in summary.rows.items() if name in ("diverged", "failed"))
    rejected = summary.rejected.get("rejected", 0)
    return failed + rejected, sum(summary.rows.values()) + rejected


def summary_lines(run: Run, figures: dict[str, dict[str, Any]], summary: Any) -> Iterator[str]:
    """Rows by status, metrics, rejected samples, figures of each stage."""
    yield f"  rows: {text.counts(summary.rows)}"
    yield f"  samples without a row: {text.counts(summary.rejected)}"
    if summary.metrics:
        yield text.table(
            [[name, *values] for name, values in summary.metrics.items()],
            header=["metric", "median", "min", "max"],
        )
    bad = summary.rejected.get("rejected", 0)
    failed = sum(n for name, n in summary.rows.items() if name in ("diverged", "failed"))
    if bad:
        for name, code, message in rejected_samples(run, SHOWN):
            yield f"  rejected: {name}: {code}: {message}"
        if bad > SHOWN:
            yield f"  ... and {bad - SHOWN} more"
    if bad:
        yield f"  all of them: {run.prepared_location.url.rstrip('/')}/failures.parquet"
    if failed:
        yield f"  failed rows: {run.store.url.rstrip('/')}/{PRIVATE}/failures.parquet"
    yield from stage_lines(figures)


def stage_lines(figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Samples a second and peak memory of each stage."""
    for stage, of in figures.items():
        yield (
            f"  {stage}: {of['samples']} samples in {text.duration(of['seconds'])} "
            f"({of['samples_s']:.3g} samples/s), peak memory of a worker "
            f"{text.size(of.get('peak_bytes', 0))}"
        )


def rejected_samples(run: Run, most: int) -> Iterator[tuple[str, str, str]]:
    """Id, code and message of the first rejected samples of the prepared dataset."""
    from pipeline.ingest.prepared import open_prepared

    left = most
    for batch in open_prepared(run.prepared_location).manifest():
        for line in batch.select(["sample_id", "status", "code", "message"]).to_pylist():
            if line["status"] == "rejected":
                yield line["sample_id"], line["code"], line["message"]
                left -= 1
                if not left:
                    return
