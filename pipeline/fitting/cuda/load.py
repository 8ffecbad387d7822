"""The kernel as this machine can run it: compiled on a CUDA device, interpreted on a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

KERNEL = "pipeline.fitting.cuda.kernel"


@cache
def kernel(interpreted: bool) -> ModuleType:
    """The module of the kernel. Triton decides while a function is decorated how it will run, so
    the interpreted kernel is a second copy, and nothing else in the process is interpreted."""
    import triton

    if not interpreted:
        return importlib.import_module(KERNEL)
    name = KERNEL + "_interpreted"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("kernel.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        spec.loader.exec_module(module)
    return module
