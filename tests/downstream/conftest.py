"""Annotations of tensors are checked while these tests run; one thread, as everything is small."""

from __future__ import annotations

import sys

import pytest
from jaxtyping import install_import_hook

MODULES = (
    "adversarial", "decoded", "features", "generative", "latents", "mixture", "networks",
    "set_metrics", "statistics",
)  # fmt: skip
NAMES = [f"pipeline.downstream.{name}" for name in MODULES]
if not sys.modules.keys() & set(NAMES):
    install_import_hook(NAMES, "beartype.beartype")


@pytest.fixture(autouse=True, scope="package")
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
