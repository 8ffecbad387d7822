"""The verbs prior and gan: a distribution over rows of a store, and samples of it as a store."""

from __future__ import annotations

import argparse

from jobs import text
from jobs.downstream import ensure_source, load_job, work
from jobs.units import stopping
from schemas.downstream import METHODS, GanJob, PriorJob, WassersteinGan


def do_prior(arguments: argparse.Namespace) -> int:
    job = load_job(arguments.run_file, arguments.overrides, PriorJob, methods=METHODS)
    return run(job, replace=arguments.replace)


def do_gan(arguments: argparse.Namespace) -> int:
    methods = {"wgan_gp": WassersteinGan}
    job = load_job(arguments.run_file, arguments.overrides, GanJob, methods=methods)
    return run(job, replace=arguments.replace)


def run(job: PriorJob, *, replace: bool = False) -> int:
    """Makes the source where it is absent, then trains, draws and reports what is not done yet."""
    with stopping() as stop:
        ensure_source(job, stop)
        from pipeline.downstream.prior_stage import check_prior, run_prior
        from pipeline.downstream.report import read_report
        from pipeline.downstream.training import Interrupted

        lesson = check_prior(job, replace=replace)
        text.say(
            f"{job.name}: {job.method.name} on {len(lesson.dataset)} rows of {lesson.space.array} "
            f"{list(lesson.space.shape)}"
            + (f", {lesson.classes} classes" if lesson.classes else "")
        )
        try:
            work(job, run_prior, stop)
        except Interrupted as error:
            text.say(str(error))
            stop.raise_if_set()
            raise
    report = read_report(lesson)
    assert report is not None
    tell(job, report)
    text.say(f"samples: {job.sample.count} rows in {job.store.url}")
    return 0


def tell(job: PriorJob, report: dict) -> None:
    """A report in words."""
    from pipeline.downstream.quality import DESCRIBED
    from pipeline.downstream.report import report_tables

    for space, header, lines in report_tables(report):
        text.say(f"{space}: {report['quality']['rows']} samples beside as many held-out rows")
        text.say(text.table(lines, header=header))
        text.say()
    names = {line[0] for _, _, lines in report_tables(report) for line in lines}
    for name, words in DESCRIBED.items():
        if name in names:
            text.say(f"  {name}: {words}")
    for note in report["quality"]["notes"]:
        text.warn(f"  note: {note}")
