"""Telling that memory ran out, whatever says so."""

from __future__ import annotations

import gc

import torch

WORDS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
"""In messages of PyTorch's allocator on CPUs, which raises RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not the memory for something."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in WORDS)


def release() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
