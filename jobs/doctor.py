"""The verb doctor: is this machine, its storage, its Ray fit for a run? One line a check."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from jobs import text
from jobs.units import one_line
from schemas.base import Location
from schemas.run import Run


def do_doctor(arguments: argparse.Namespace) -> int:
    """Runs all checks; exit code 4 when one fails."""
    checks = list(environment())
    if arguments.run_file:
        from jobs.config import load_run

        run = load_run(arguments.run_file, arguments.overrides)
        checks += storage(run)
    if arguments.ray:
        checks.append(("Ray", check_ray))
    failed = 0
    for name, check in checks:
        try:
            text.say(f"  ok    {name}: {check()}")
        except Exception as error:
            failed += 1
            text.say(f"  FAIL  {name}: {one_line(error)}")
    text.say(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 4 if failed else 0


Check = tuple[str, Callable[[], str]]


def environment() -> Iterator[Check]:
    """Python, packages, memory and disk."""
    yield "python", lambda: f"{platform.python_version()} on {platform.machine()}"
    yield "packages", check_packages
    yield "torch", check_torch
    yield "cores", lambda: f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
    yield "memory", lambda: text.size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    yield (
        "temporary space",
        lambda: text.size(shutil.disk_usage(os.environ.get("TMPDIR", "/tmp")).free),
    )
    yield "credentials", check_credentials


def check_packages() -> str:
    """Compares what is installed with what fieldmill requires."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("fieldmill") or ()]
    except PackageNotFoundError as error:
        raise RuntimeError("fieldmill is not installed here; run `pip install -e .`") from error
    wrong = []
    for need in wanted:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing (wanted {need.specifier})")
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} {found} is not {need.specifier}")
    if wrong:
        raise RuntimeError("; ".join(wrong))
    return f"{len(wanted)} requirements met"


def check_torch() -> str:
    torch = importlib.import_module("torch")
    gpus = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus))
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {names or 'no GPU'}"


def check_credentials() -> str:
    """Which source of AWS credentials there is; never its value."""
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return "AWS keys in the environment"
    if os.environ.get("AWS_PROFILE"):
        return f"AWS profile '{os.environ['AWS_PROFILE']}'"
    return "none in the environment (a role of this machine may still serve)"


def storage(run: Run) -> list[Check]:
    """Can the dataset be read, the store and the prepared dataset be written?"""
    return [
        ("dataset", lambda: check_readable(run)),
        ("prepared", lambda: check_writable(run.prepared_location)),
        ("store", lambda: check_writable(run.store)),
    ]


def check_readable(run: Run) -> str:
    """Finds the first objects of the dataset."""
    from pipeline.ingest.target import find_target

    target = find_target(run.dataset)
    for page in target.list(20):
        return f"{run.dataset.url}: {len(page)} objects on the first page"
    raise RuntimeError(f"{run.dataset.url} holds nothing")


def check_writable(location: Location) -> str:
    """Puts the storage to the test that a run makes before its first unit."""
    from pipeline.storage import open_objects
    from pipeline.store import probe_storage

    if location.scheme == "memory":
        return "memory, this process only"
    probe_storage(open_objects(location))
    return f"{location.url}: put-if-absent, ranges, copies and listings work"


def check_ray() -> str:
    """Starts or joins Ray as a run would, and runs one task."""
    from jobs.cluster import connect
    from schemas.run import Resources

    ours = connect(Resources())
    import ray

    try:
        node = ray.get(ray.remote(platform.node).remote(), timeout=60)
        found = ray.cluster_resources()
        return (
            f"{version('ray')}: {found.get('CPU', 0):g} CPU, "
            f"{found.get('GPU', 0):g} GPU on {len(ray.nodes())} nodes; a task ran on {node}"
        )
    finally:
        if ours:
            ray.shutdown()
