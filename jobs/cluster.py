"""Joining a Ray cluster or starting one, and how many workers it has room for."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.units import WorldError, one_line
from schemas.run import Resources


def connect(resources: Resources) -> bool:
    """Joins the cluster of `resources.address` or RAY_ADDRESS, or starts one on this machine.

    A local cluster gets a token of its own, in the environment only. Returns whether this call
    connected the process: then whoever called also ends it.
    """
    address = resources.address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # one default for Ray's own warning; workers without GPUs must not see any
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if not address and not os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    if ray.is_initialized():
        return False
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        options["address"] = address
        if not in_job:  # a job's folder travels with it
            from jobs.package import staged_packages

            options["runtime_env"] = {"working_dir": staged_packages()}
    else:
        options |= {"address": "local", "include_dashboard": False}
        options["object_store_memory"] = 128 * 2**20  # data goes through storage
    try:
        with in_package_folder():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise WorldError(
            f"cannot join Ray at {address or 'this machine'}: {one_line(error)}"
        ) from error
    if in_job:
        # a second node on this machine unpacks the job's folder anew: do not stand in the old one
        os.chdir(tempfile.gettempdir())
    return True


@contextmanager
def in_package_folder() -> Iterator[None]:
    """Ray puts the driver's folder first on its workers' path: let that be ours, not the user's,
    which may hold a `pipeline/` of its own."""
    here = os.getcwd()
    os.chdir(Path(__file__).resolve().parents[1])
    try:
        yield
    finally:
        os.chdir(here)


def worker_count(resources: Resources, tasks: int, *, gpus: float) -> int:
    """Workers to start: as asked for, or as many as there is room for; no more than tasks.

    A number of GPU workers does not bound a stage that needs no GPU.
    """
    if isinstance(resources.workers, int) and bool(gpus) == bool(resources.gpus):
        count = resources.workers
    else:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count = sum(fitting(node, resources.cores, gpus) for node in nodes)
    return max(1, min(count, tasks))


def fitting(node: dict[str, float], cores: int, gpus: float) -> int:
    """Workers that fit on a node."""
    count = int(node.get("CPU", 0) // cores)
    return min(count, int(node.get("GPU", 0) // gpus)) if gpus else count
