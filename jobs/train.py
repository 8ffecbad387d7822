"""Training of shared parameters: one actor, or Ray Train workers with torch.distributed.

Checkpoints lie in the store and are written by rank 0: whatever dies, the next attempt goes on
from the last one. With `train.workers: 1` the worker is an actor like those that fit, which starts
faster than Ray Train and is replaced when it dies.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from jobs.units import Task, WorldError, one_line
from jobs.workers import device_of, limit_threads
from pipeline.storage import open_objects
from pipeline.store import check_nonce, leave_nonce
from pipeline.store.probe import nonce_key
from schemas.run import Run


class TrainWorker:
    """Trains alone."""

    def __init__(self, run: str, nonce: str, limited: bool = True):
        self.run, self.nonce = Run.model_validate_json(run), nonce
        if limited:
            limit_threads(self.run.resources.cores)

    def check(self) -> None:
        check_nonce(open_objects(self.run.store), self.nonce)

    def work(self, task: Task, attempt: str) -> dict[str, Any]:
        return train_one(self.run, 0, 1, device_of(self.run))


def train_one(run: Run, rank: int, world: int, device: str) -> dict[str, Any]:
    """One rank's training; the record that it returns is small. Divergence is a record too: no
    other attempt would end otherwise."""
    import torch

    from pipeline import stages
    from pipeline.fitting import TrainingDiverged

    if device == "cpu":
        torch.set_num_threads(run.resources.cores)
    try:
        record = stages.train_shared(run, rank, world, device)
    except TrainingDiverged as error:
        return {"diverged": str(error)}
    return {k: v for k, v in record.items() if isinstance(v, int | float | str)}


def train_together(run: Run) -> dict[str, Any]:
    """Trains with several Ray Train workers; a group that loses one starts again together."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = bool(run.resources.gpus)
    each: dict[str, float] = {"CPU": run.resources.cores}
    if gpu:
        each["GPU"] = 1
    objects = open_objects(run.store)
    with (
        leave_nonce(objects) as nonce,
        tempfile.TemporaryDirectory(prefix="fieldmill-train-") as folder,
    ):
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"run": run.model_dump_json(), "nonce": nonce},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=run.train.workers, use_gpu=gpu, resources_per_worker=each
            ),
            run_config=ray.train.RunConfig(
                name=run.name,
                storage_path=folder,  # only Ray's notes: our checkpoints are in the store
                failure_config=ray.train.FailureConfig(max_failures=run.resources.retries),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise WorldError(f"training failed: {one_line(error)}") from error
        record = json.loads(objects.get(record_key(nonce)))
        objects.delete(record_key(nonce))
    return record


def record_key(nonce: str) -> str:
    """Where rank 0 leaves its record: Ray Train returns metrics with its own checkpoints only."""
    return nonce_key(nonce) + ".record"


def _loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train
    import ray.train.torch

    run = Run.model_validate_json(config["run"])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(run.resources.cores)
    check_nonce(open_objects(run.store), config["nonce"])
    context = ray.train.get_context()
    device = str(ray.train.torch.get_device())
    rank = context.get_world_rank()
    record = train_one(run, rank, context.get_world_size(), device)
    if rank == 0:
        data = json.dumps(record).encode()
        open_objects(run.store).put(record_key(config["nonce"]), data)
