"""Datasets turned into implicit neural representations. Never imports Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.evaluate.opened import open_store as open_store


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `import pipeline` must not
    if name == "open_store":
        from pipeline.evaluate.opened import open_store

        return open_store
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
