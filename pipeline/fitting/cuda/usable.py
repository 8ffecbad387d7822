"""Whether the kernel can fit a method with what is installed here."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from pipeline.fitting.cuda.layout import Layout, too_large
from pipeline.fitting.fused.recognize import recognize
from pipeline.fitting.method import Method

OLDEST = (3, 4)
"""Version of Triton."""


def why_not(method: Method) -> str:
    """Empty if the kernel can fit this method with what is installed here, else why it cannot."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    version = importlib.metadata.version("triton")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"triton {version} is older than {'.'.join(map(str, OLDEST))}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has no matrix units for tf32 and bf16"
    found = recognize(method)
    return found if isinstance(found, str) else too_large(Layout.of(found))
