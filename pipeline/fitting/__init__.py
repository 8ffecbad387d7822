"""Finding parameters: method types, phases, lanes, training of what is shared."""

from pipeline.fitting.cuda.choice import COMPARED, choose_kernel
from pipeline.fitting.describe import describe
from pipeline.fitting.encoding import choose_encoding, why_not_encode
from pipeline.fitting.fit import fit_rows, fit_units
from pipeline.fitting.measured import measured_lanes
from pipeline.fitting.paths import NUMERICS, choose_path, default_lanes, estimate_seconds
from pipeline.fitting.rows import (
    bindable,
    pack,
    pack_shared,
    row_arrays,
    shared_arrays,
    start_shared,
    unpack,
    unpack_shared,
)
from pipeline.fitting.stream import Stream
from pipeline.fitting.together import Together
from pipeline.fitting.train import Trained, TrainingDiverged, train
from pipeline.fitting.units import Fitted

__all__ = [
    "COMPARED",
    "NUMERICS",
    "Fitted",
    "Stream",
    "Together",
    "Trained",
    "TrainingDiverged",
    "bindable",
    "choose_encoding",
    "choose_kernel",
    "choose_path",
    "default_lanes",
    "describe",
    "estimate_seconds",
    "fit_rows",
    "fit_units",
    "measured_lanes",
    "pack",
    "pack_shared",
    "row_arrays",
    "shared_arrays",
    "start_shared",
    "train",
    "unpack",
    "unpack_shared",
    "why_not_encode",
]
