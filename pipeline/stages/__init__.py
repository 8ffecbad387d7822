"""What each task of a run does, without Ray: plain functions of the run file, safe to run again.

A driver maps them: `prepare` -> `ingest_shard` for each unit -> `fold_prepared` -> `train_shared`
-> `plan_fit` -> `Fitter.fit` for each unit -> `finish` -> `plan_evaluate` -> `Evaluator.measure`
for each chunk -> `evaluate_finish`.
"""

from pipeline.stages.common import refuse_unfit
from pipeline.stages.evaluate import (
    Evaluator,
    Summary,
    evaluate_finish,
    finish,
    plan_evaluate,
    prepared_line,
    summarize,
)
from pipeline.stages.fit import Fitter
from pipeline.stages.ingest import fold_prepared, ingest_shard, prepare
from pipeline.stages.plan import FitTodo, plan_fit
from pipeline.stages.train import train_shared, trained

__all__ = [
    "Evaluator",
    "FitTodo",
    "Fitter",
    "Summary",
    "evaluate_finish",
    "finish",
    "fold_prepared",
    "ingest_shard",
    "plan_evaluate",
    "plan_fit",
    "prepare",
    "prepared_line",
    "refuse_unfit",
    "summarize",
    "train_shared",
    "trained",
]
