"""Boundary value problems of some samples as tensors of fixed shapes: sources, medium, numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from schemas.samples import FormSpec


@dataclass(frozen=True)
class Problems:
    """Problems in the units of fields (see `pipeline/ingest/equations.py`); `s` sources."""

    wavenumber: Float[Tensor, "n"]
    duration: Float[Tensor, "n"]
    at: Float[Tensor, "n s d"]
    """Centers of the sources."""
    variance: Float[Tensor, "n s"]
    """Of a source along each axis; those that only fill up have 1, and strength 0."""
    strength: Float[Tensor, "n s 2"]
    """Real and imaginary part: of a Helmholtz source its integral, of a wave its height."""
    speed: Float[Tensor, "n *m"]
    """At evenly spaced nodes of the domain, first axis x."""

    def take(self, index: Int[Tensor, "m"]) -> Problems:
        """The problems of some samples."""
        index = index.to(self.wavenumber.device)
        return Problems(**{k: getattr(self, k)[index] for k in self.__dataclass_fields__})

    def to(self, device: torch.device) -> Problems:
        return Problems(**{k: getattr(self, k).to(device) for k in self.__dataclass_fields__})


def form_of_problems(table: pa.Table) -> FormSpec:
    """What a method needs to know of prepared equations, from any row."""
    equation, d = table["equation"][0].as_py(), len(table["medium"][0].as_py())
    waves = equation == "wave"
    return FormSpec(kind="equations", equation=equation, dims=d + waves, channels=1 if waves else 2)


def require_equation(equation: str, form: FormSpec) -> None:
    """Refuses data that the method of an equation, which has its name, can make nothing of."""
    if form.kind != "equations":
        raise ValueError(f"{equation} solves equations; this dataset has {form.kind}")
    if form.equation != equation:
        raise ValueError(
            f"{equation} solves {equation} equations; this dataset has {form.equation} equations: "
            f"try method '{form.equation}', or ingest.equation: {equation}"
        )


def load_problems(table: pa.Table) -> Problems:
    """The problems of a prepared table."""
    media = {tuple(m) for m in table["medium"].to_pylist()}
    lengths = {len(value.as_buffer()) for value in table["sources"]}
    if len(media) != 1 or len(lengths) != 1:
        raise ValueError(
            f"problems differ in their medium ({sorted(media)} nodes) or number of sources: they "
            "were prepared with other keys of ingest and cannot be loaded together"
        )
    (medium,) = media

    def column(name: str, *shape: int) -> Tensor:
        rows = [np.frombuffer(value.as_buffer(), "<f4") for value in table[name]]
        return torch.from_numpy(np.stack(rows).reshape(len(rows), *shape).copy())

    sources, d = column("sources", -1, len(medium) + 3), len(medium)
    return Problems(
        wavenumber=_numbers(table, "wavenumber"),
        duration=_numbers(table, "duration"),
        at=sources[..., :d].contiguous(),
        variance=sources[..., d].contiguous(),
        strength=sources[..., d + 1 :].contiguous(),
        speed=column("speed", *medium),
    )


def _numbers(table: pa.Table, name: str) -> Tensor:
    return torch.tensor(table[name].to_pylist(), dtype=torch.float32)
