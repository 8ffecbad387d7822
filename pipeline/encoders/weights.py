"""Starting an encoder from a user's file of weights (safetensors)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.draw import Draw


def start_from(encoder: nn.Module, path: str, *, own: Sequence[str] = ("head.",)) -> None:
    """Lets an encoder start from a file instead of at random.

    The file is read where parameters start, not here: what was trained is in the store, so that
    reading a store does not need it.

    Args:
        path: A file that every training worker can read. Its names are those of the encoder;
            counters of batch normalizations and classifiers (`fc.`) are passed over.
        own: Prefixes of what the encoder starts itself where the file does not have it.
    """
    current = dict((*encoder.named_parameters(), *encoder.named_buffers()))
    file = WeightsFile(path, {n: tuple(t.shape) for n, t in current.items()}, tuple(own))
    for prefix, module in encoder.named_modules():
        dot = prefix + "." if prefix else ""
        rules = dict(getattr(module, "initializers", {}))
        for name in (*module._parameters, *module._buffers):
            if dot + name in current:
                rules[name] = FromFile(file, dot + name, rules.get(name))
        module.initializers = rules


@dataclass(frozen=True)
class WeightsFile:
    """A file, and what an encoder expects in it."""

    path: str
    shapes: dict[str, tuple[int, ...]]
    own: tuple[str, ...]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By name; anything missing, unknown or of another shape is an error."""
        if not Path(self.path).is_file():
            raise ValueError(
                f"weights: there is no file {self.path!r} here; give the path of a safetensors "
                "file that every training worker can read"
            )
        found = load_file(self.path)
        passed = [n for n in found if n.startswith("fc.") or n.endswith("num_batches_tracked")]
        found = {n: t for n, t in found.items() if n not in passed or n in self.shapes}
        missing = [n for n in self.shapes if n not in found and not n.startswith(self.own)]
        unknown = [n for n in found if n not in self.shapes]
        wrong = [
            f"{n} {list(t.shape)} for {list(self.shapes[n])}"
            for n, t in found.items()
            if n in self.shapes and tuple(t.shape) != self.shapes[n]
        ]
        if missing or unknown or wrong:
            raise ValueError(
                f"weights: {self.path!r} does not fit the encoder: missing {_few(missing)}, "
                f"unknown {_few(unknown)}, of another shape {_few(wrong)}"
            )
        return {n: t.to(torch.float32) for n, t in found.items()}


@dataclass(frozen=True)
class FromFile:
    """A rule that starts one tensor from the file; `otherwise` serves where it may lack it."""

    file: WeightsFile
    name: str
    otherwise: object | None

    def __call__(self, draw: Draw, tag: str, shape: Sequence[int]) -> Tensor:
        if self.name in self.file.tensors:
            value = self.file.tensors[self.name].to(draw.keys.device)
            return value.expand(len(draw.keys), *shape).clone()
        if self.otherwise is None:
            raise ValueError(f"weights: {self.file.path!r} lacks {self.name!r}")
        return self.otherwise(draw, tag, shape)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
