"""Sends a run to a cluster with the Ray Jobs API; sending it twice sends it once."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from jobs import text
from jobs.config import load_run, locations
from jobs.errors import GateFailed
from jobs.package import stage
from jobs.tree import ConfigError
from jobs.units import WorldError, one_line
from schemas.base import identity
from schemas.run import Run

RUN_FILE = "run.yaml"
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_S = 1.0
AGENT_S = 90.0
"""Seconds that a cluster which has just started gets until it takes jobs."""


def do_submit(arguments: argparse.Namespace) -> int:
    """Submits, or finds, the job of this run; waits for it unless told not to."""
    run = load_run(arguments.run_file, arguments.overrides, limit=arguments.limit)
    run = run.model_copy(update={"resources": run.resources.model_copy(update={"address": None})})
    refuse_local(arguments.run_file, run, shared=arguments.shared_filesystem)
    client = open_client(arguments.address)
    submission, fresh = submit(
        client, run, python=arguments.python, flags=flags(arguments), again=arguments.again
    )
    text.say(f"{submission}: {'submitted' if fresh else 'was submitted before'}")
    if arguments.no_wait:
        text.say("  look again with: " + shlex.join(["ray", "job", "logs", "--follow", submission]))
        return 0
    status = follow(client, submission, print_log=arguments.follow)
    return conclude(client, submission, status, printed=arguments.follow)


def flags(arguments: argparse.Namespace) -> list[str]:
    """Options of `run` that travel with the job."""
    return [f"--{name}" for name in ("update", "replace") if getattr(arguments, name)]


def refuse_local(name: str, run: Run, *, shared: bool) -> None:
    """Refuses URLs that mean something else, or nothing, on the cluster's nodes."""
    problems = []
    for path, location in locations(run):
        if location.scheme == "memory":
            problems.append(f"{name}: {'.'.join(path)}: memory:// is seen by one process only")
        elif location.scheme == "file" and not shared:
            problems.append(
                f"{name}: {'.'.join(path)}: '{location.url}' is a local path, which nodes of a "
                "cluster do not share; use a bucket, or --shared-filesystem if they do"
            )
    if run.resources.workers == 0:
        problems.append(f"{name}: resources.workers: 0 means no Ray, submit needs it")
    if problems:
        raise ConfigError(problems)


def open_client(address: str | None) -> Any:
    """A client of the Jobs API; its token comes from the environment and is never printed."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise WorldError(
            f"no Ray dashboard answers at {address}: {one_line(error)}; give --address, and the "
            "cluster's token as RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error


def submit(
    client: Any, run: Run, *, python: str = "python", flags: list[str] = (), again: bool = False
) -> tuple[str, bool]:
    """Submits the run, or finds the submission that is there; returns its id and if it is new.

    The id is made of the run's name, a hash of the run, and the number of the attempt: a next
    attempt begins only when the last one has ended otherwise than well (or `again`).
    """
    from ray.job_submission import JobStatus

    base = f"fieldmill-{run.name}-{identity([run.model_dump(mode='json'), list(flags)])[:12]}"
    attempt = 0
    while (status := status_of(client, f"{base}-{attempt}")) is not None:
        over = status in (JobStatus.FAILED, JobStatus.STOPPED)
        if not over and not (again and status == JobStatus.SUCCEEDED):
            return f"{base}-{attempt}", False
        attempt += 1
    submission = f"{base}-{attempt}"
    words = [python, "-m", "jobs.cli", "run", RUN_FILE, *flags]
    with staged(run) as folder:
        until = time.monotonic() + AGENT_S
        while True:
            try:
                client.submit_job(
                    entrypoint=shlex.join(words),
                    submission_id=submission,
                    runtime_env={"working_dir": folder},
                    metadata={"run": run.name, "store": run.store.url},
                )
            except RuntimeError as error:
                if status_of(client, submission) is not None:  # somebody else was faster
                    return submission, False
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise WorldError(f"the job was refused: {one_line(error)}") from error
                time.sleep(POLL_S)
            else:
                return submission, True


@contextmanager
def staged(run: Run) -> Iterator[str]:
    """A folder with our packages and the run file, nothing else; gone afterwards."""
    folder = tempfile.mkdtemp(prefix="fieldmill-submit-")
    try:
        stage(Path(folder))
        values = run.model_dump(mode="json", exclude_defaults=True)
        Path(folder, RUN_FILE).write_text(yaml.safe_dump(values, sort_keys=False))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def status_of(client: Any, submission: str) -> Any:
    """Status of a submission, None if there is none of this id."""
    try:
        return client.get_job_status(submission)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise WorldError(f"the cluster does not tell about jobs: {one_line(error)}") from error


def follow(client: Any, submission: str, *, print_log: bool) -> str:
    """Waits for a terminal status, printing what is new in the log; returns the status."""
    shown = 0
    while True:
        status = str(getattr(status_of(client, submission), "value", "STOPPED"))
        if print_log:
            log = client.get_job_logs(submission)
            for line in log[shown:].splitlines():
                text.say(line)
            shown = len(log)
        if status in TERMINAL:
            return status
        time.sleep(POLL_S)


def conclude(client: Any, submission: str, status: str, *, printed: bool) -> int:
    """The exit code of the job's driver; for a failure, the end of its log."""
    info = client.get_job_info(submission)
    if status == "SUCCEEDED":
        text.say(f"{submission}: complete")
        return 0
    if not printed:
        for line in client.get_job_logs(submission).splitlines()[-30:]:
            text.say("  " + line)
    if status == "STOPPED":
        raise WorldError(f"{submission} was stopped")
    code = info.driver_exit_code
    text.warn(f"fieldmill: {submission} ended with exit code {code}: {info.message}")
    if code is None:
        raise WorldError(f"{submission} failed before its driver ended: {info.message}")
    if code == 3:
        raise GateFailed(f"{submission} ended, but too much of it failed")
    return code if 1 <= code <= 143 else 1
