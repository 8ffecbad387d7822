"""Datasets turned into implicit neural representations. Never imports Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Matrix products whose bits do not depend on where in memory a sample lies: MKL otherwise picks
# kernels by alignment, and a row would depend on its lane where widths are odd. It reads this
# before its first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from pipeline.evaluate.opened import open_store as open_store


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `import pipeline` must not
    if name == "open_store":
        from pipeline.evaluate.opened import open_store

        return open_store
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
