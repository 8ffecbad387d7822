"""What the verbs on finished stores share: their run files, the store they read, their workers."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from jobs import text
from jobs.config import (
    _model_errors,
    _unknown,
    _unknown_keys,
    _without_unknown,
    load_run,
    nearest,
)
from jobs.train import record_key
from jobs.tree import ConfigError, Tree, apply_override, read_tree
from jobs.units import Stop, WorldError, one_line
from jobs.workers import refuse_without_gpu
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.downstream import Computing, Job

Work = Callable[..., dict[str, Any]]
"""A worker's part of a job: (job, rank, world, device, told, stop) -> a small record."""


def load_job(
    path: str,
    overrides: Sequence[str],
    model: type[Job],
    *,
    methods: dict[str, type] | None = None,
    folder: str | None = None,
) -> Job:
    """The job of a YAML file with `key.path=value` overrides; raises ConfigError.

    Args:
        model: Class of the run file.
        methods: Classes of `method` by name, where the file names one.
        folder: What relative paths are relative to; the current directory when absent.
    """
    tree = read_tree(path)
    if "dataset" in tree.values and "source" not in tree.values:
        raise ConfigError(
            [
                f"{tree.place(('dataset',))}: this file makes a store (fieldmill run); a job that "
                "reads one has a file of its own, with source: this file or the store's URL"
            ]
        )
    folder = folder or os.getcwd()
    problems: list[str] = []
    _spell_out_source(tree)
    for word in overrides:
        try:
            apply_override(tree, word)
        except ConfigError as error:
            problems += error.problems
        _spell_out_source(tree)  # a later override may name a key below it
    problems += _method_problems(tree, methods)
    problems += _complete_source(tree, path, folder)
    values = tree.values if "method" not in model.model_fields else _known_method(tree, methods)
    problems += [_unknown(tree, at, of) for at, of in _unknown_keys(values, model, ())]
    problems += _model_errors(tree, model, _without_unknown(values, model), ())
    if problems:
        raise ConfigError(problems)
    job = absolute(model.model_validate(tree.values), folder)
    problems = _combinations(tree, job)
    if problems:
        raise ConfigError(problems)
    return job


def _spell_out_source(tree: Tree) -> None:
    """Gives a source that is one string, in the file or in an override, the key that it is."""
    source = tree.values.get("source")
    if isinstance(source, str):
        key = "run" if source.endswith((".yaml", ".yml")) else "url"
        tree.values["source"] = {key: source}


def _method_problems(tree: Tree, methods: dict[str, type] | None) -> list[str]:
    """Errors of the method's name and of the keys that this method has."""
    if methods is None:
        return []
    method = tree.values.get("method")
    if isinstance(method, str):
        method = tree.values["method"] = {"name": method}
    default = next(iter(methods)) if len(methods) == 1 else None
    if method is None and default is None:
        return []  # told by the model
    if not isinstance(method, dict):
        method = {} if method is None else None
    if method is None:
        return [f"{tree.place(('method',))}: method: must be a name, or a mapping with one"]
    name = method.get("name", default)
    if name not in methods:
        hint = nearest(str(name), list(methods), ("method.name",))
        hint = hint.replace("keys of method.name:", "there are:")
        return [f"{tree.place(('method', 'name'))}: method.name: unknown method '{name}'{hint}"]
    tree.values["method"] = {"name": name, **method}
    unknown = list(_unknown_keys(method, methods[name], ("method",)))
    lines = [_unknown(tree, at, of) for at, of in unknown]
    known = _without_unknown(method, methods[name])
    return lines + _model_errors(tree, methods[name], known, ("method",))


def _known_method(tree: Tree, methods: dict[str, type] | None) -> dict[str, Any]:
    """The values with a method that is right, so that its own errors are told once."""
    if methods is None:
        return tree.values
    method = tree.values.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    if method is None:
        return tree.values
    try:
        methods[name].model_validate(method)
    except (KeyError, ValueError):
        return {**tree.values, "method": {"name": name if name in methods else next(iter(methods))}}
    return tree.values


def _complete_source(tree: Tree, path: str, folder: str) -> list[str]:
    """Puts in the URL of a source that is given by its run file; a path that is not here is looked
    for beside this file. Returns what is wrong with that run file."""
    source = tree.values.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("run"), str):
        return []
    run = os.path.join(folder, os.path.expanduser(source["run"]))
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), source["run"])
    if not os.path.exists(run) and os.path.exists(beside):
        run = beside
    source["run"] = run
    if "url" in source:
        return []
    try:
        made = load_run(run, folder=folder).store
    except ConfigError as error:
        source["url"] = "unknown"
        return [f"{tree.place(('source',))}: source: {line}" for line in error.problems]
    source |= {name: value for name, value in made.location_fields().items() if value}
    return []


def absolute(job: Job, folder: str) -> Job:
    """The job with relative local paths made absolute: workers stand in folders of their own."""
    dumped = job.model_dump(mode="json")
    places = [(dumped["source"], "url"), (dumped["store"], "url")]
    for location in (dumped.get("prepared"), dumped.get("labels", {}).get("masks")):
        if location is not None:
            places.append((location, "url"))
    if dumped.get("evaluate", {}).get("features", "pca") not in ("pca", "classifier"):
        places.append((dumped["evaluate"], "features"))
    for values, name in places:
        if "://" not in values[name]:
            values[name] = os.path.abspath(os.path.join(folder, os.path.expanduser(values[name])))
    return type(job).model_validate(dumped)


def _combinations(tree: Tree, job: Job) -> list[str]:
    """Keys that are right alone and wrong together."""
    problems = []
    for name, location in (("source", job.source), ("store", job.store)):
        if location.scheme == "memory" and job.resources.workers:
            problems.append(
                f"{tree.place((name,))}: {name}: memory:// is seen by one process only; set "
                "resources.workers=0, or use a file or s3 URL"
            )
    if job.source.url.rstrip("/") == job.store.url.rstrip("/"):
        problems.append(
            f"{tree.place(('store',))}: store: is the source itself; results need a place of their "
            "own"
        )
    if not job.resources.workers and job.resources.address is not None:
        problems.append(
            f"{tree.place(('resources', 'address'))}: resources.address: has no effect with "
            "resources.workers=0; remove one of them"
        )
    return problems


# --- source ---------------------------------------------------------------------------------


def ensure_source(job: Job, stop: Stop) -> None:
    """Makes the store that a job reads with the run file that it names, unless it is finished."""
    from jobs.driver import Driver, exists
    from jobs.run import STAGES, execute
    from pipeline.store.records import latest_final

    if not job.resources.workers:
        refuse_without_gpu(job.resources)
    source = Location(**job.source.location_fields())
    if exists(source) and latest_final(open_objects(source))[0] is not None:
        return
    if job.source.run is None:
        raise ValueError(
            f"source: {source.url} holds no finished store; name the run file that makes it "
            "(source.run), or run it first"
        )
    run = load_run(job.source.run)
    if run.store.url.rstrip("/") != source.url.rstrip("/"):
        raise ValueError(
            f"source.run: {job.source.run} makes {run.store.url}, not {source.url}; leave out "
            "source.url, or run that file with another store first"
        )
    if not job.resources.workers:
        resources = run.resources.model_copy(update={"workers": 0, "address": None})
        run = run.model_copy(update={"resources": resources})
    text.say(f"{source.url} is not there yet: running {job.source.run}")
    driver = Driver(run, stop)
    try:
        execute(driver, STAGES)
    finally:
        driver.disconnect()


# --- workers --------------------------------------------------------------------------------


def work(job: Job, task: Work, stop: Stop) -> dict[str, Any]:
    """Runs a job's task in this process, or with Ray Train on several workers."""
    if job.resources.workers:
        return _together(job, task)
    import torch

    device = "cuda" if job.resources.gpus else "cpu"
    if device == "cpu":
        torch.set_num_threads(job.resources.cores)
    stop.graceful = True
    try:
        return task(job, 0, 1, device, text.say, lambda: stop.number is not None)
    finally:
        stop.graceful = False


def _together(job: Job, task: Work) -> dict[str, Any]:
    """A group of Ray Train workers; one that loses a member starts again from its checkpoint."""
    from jobs import cluster
    from pipeline.store import leave_nonce

    resources = job.resources
    ours = cluster.connect(resources)  # before ray.train, which reads the cluster's token
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = bool(resources.gpus)
    each: dict[str, float] = {"CPU": resources.cores}
    if gpu:
        each["GPU"] = resources.gpus
    objects = open_objects(job.store)
    try:
        with (
            leave_nonce(objects) as nonce,
            tempfile.TemporaryDirectory(prefix="fieldmill-train-") as folder,
        ):
            config = {"job": job.model_dump_json(), "model": type(job), "task": task}
            trainer = TorchTrainer(
                _loop,
                train_loop_config={**config, "nonce": nonce},
                torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=resources.workers, use_gpu=gpu, resources_per_worker=each
                ),
                run_config=ray.train.RunConfig(
                    name=job.name,
                    storage_path=folder,  # only Ray's notes: our checkpoints are in the store
                    failure_config=ray.train.FailureConfig(max_failures=resources.retries),
                ),
            )
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise WorldError(f"training failed: {one_line(error)}") from error
            record = json.loads(objects.get(record_key(nonce)))
            objects.delete(record_key(nonce))
        return record
    finally:
        if ours:
            ray.shutdown()


def _loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch
    import torch

    from pipeline.store import check_nonce

    job = config["model"].model_validate_json(config["job"])
    resources: Computing = job.resources
    check_nonce(open_objects(job.store), config["nonce"])
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    if device == "cpu":
        torch.set_num_threads(resources.cores)
    rank, world = context.get_world_rank(), context.get_world_size()
    record = config["task"](job, rank, world, device)
    if rank == 0:
        data = json.dumps(record).encode()
        open_objects(job.store).put(record_key(config["nonce"]), data)
