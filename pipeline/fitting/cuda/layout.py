"""Rows as the kernel holds them, and what of a network fits on a multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pipeline.fields.bind import Tensors
from pipeline.fitting.fused.recognize import Recognized

FEW, COLUMNS = 4, 16
"""As in `kernel`: numbers kept for coordinates and channels, and what products pad them to."""
REGISTERS = 256 * 2**10
"""Bytes of registers of a multiprocessor (NVIDIA from Volta on)."""
MODES = ("bf16", "tf32", "fp32")
"""Fastest first."""
DEEPEST = {"bf16": {64: 4, 128: 2}, "tf32": {64: 4, 128: 0}, "fp32": {64: 2, 128: 0}}
"""Most hidden layers by width, so that the factors of products stay within the 227 KB of shared
memory of Hopper: 5 x 64 takes 140 KB in bf16 and 165 in tf32, 3 x 128 takes 129 in bf16 (277 in
tf32), 3 x 64 takes 192 in float32 (5 x 64: 357)."""
SPILLED = 0.5
"""Part of `REGISTERS` that may spill to the first cache before the kernel is no longer chosen."""


@dataclass(frozen=True)
class Layout:
    """Places of a row's parameters; widths are padded to a power of two (`kernel`)."""

    dims: int
    width: int
    hidden: int
    channels: int
    names: tuple[tuple[str, str], ...]
    """Parameter names of weight and bias of each layer."""

    @classmethod
    def of(cls, method: Recognized) -> Layout:
        return cls(method.dims, method.width, method.hidden, method.channels, method.names)

    @property
    def padded(self) -> int:
        return max(16, 1 << (self.width - 1).bit_length())

    @property
    def size(self) -> int:
        w = self.padded
        return 2 * FEW * w + self.hidden * (w * w + w) + FEW

    def parts(self, flat: Float[Tensor, "n _"]) -> list[tuple[Tensor, Tensor]]:
        """Views of weight and bias of every layer."""
        n, w, real, h = len(flat), self.padded, self.width, self.hidden
        sizes = [FEW * w, h * w * w, h * w, FEW * w, FEW]
        first, hidden, biases, last, last_bias = flat.split(sizes, 1)
        first, last = first.view(n, FEW, w), last.view(n, FEW, w)
        hidden, biases = hidden.view(n, h, w, w), biases.view(n, h, w)
        return [
            (first[:, : self.dims, :real].transpose(1, 2), first[:, self.dims, :real]),
            *((hidden[:, k, :real, :real], biases[:, k, :real]) for k in range(h)),
            (last[:, : self.channels, :real], last_bias[:, : self.channels]),
        ]

    def pack(self, rows: Tensors) -> Float[Tensor, "n _"]:
        """Flat rows of parameters by name."""
        some = rows[self.names[0][0]]
        flat = some.new_zeros(len(some), self.size)
        for (weight, bias), (w, b) in zip(self.parts(flat), self.names):
            weight.copy_(rows[w])
            bias.copy_(rows[b])
        return flat

    def unpack(self, flat: Float[Tensor, "n _"]) -> Tensors:
        """Parameters by name; the inverse of `pack`."""
        rows = {}
        for (weight, bias), (w, b) in zip(self.parts(flat), self.names):
            rows[w], rows[b] = weight.contiguous(), bias.contiguous()
        return rows


@dataclass(frozen=True)
class Shape:
    """How a program is cut."""

    tile: int
    """Points in work at a time."""
    warps: int
    stages: int = 2
    """How far loads run ahead; each takes shared memory."""


def shape_of(layout: Layout, mode: str) -> Shape:
    """How programs are cut, by what the compiler reports for Hopper (registers, spills, code).

    The matrix units want 64 points. Float32 takes three products with parts of both factors, so
    half of that. Eight warps have twice the registers of four, and the half of a multiprocessor's
    latency to hide; they also take twice the points where those fit.
    """
    if mode == "fp32":
        return Shape(32, 4 if layout.padded <= 64 else 8, 1)
    if layout.padded <= 32 or (layout.padded == 64 and layout.hidden <= 1 and mode == "bf16"):
        return Shape(64, 4)
    return Shape(128 if layout.padded == 64 and mode == "bf16" else 64, 8)


def register_bytes(layout: Layout, tile: int) -> int:
    """What a program would keep in registers while it works on a tile: gradients, slopes of all
    layers, two tiles in work."""
    w, h = layout.padded, layout.hidden
    gradients = h * (w * w + COLUMNS * w) + 2 * COLUMNS * w + 2 * COLUMNS * tile
    return 4 * (gradients + (h + 1) * tile * w + 2 * tile * w)


def modes_of(layout: Layout) -> tuple[str, ...]:
    """The modes in which a network fits on a multiprocessor."""
    if register_bytes(layout, 64) > REGISTERS * (1 + SPILLED):
        return ()
    width = max(64, layout.padded)
    return tuple(mode for mode in MODES if layout.hidden <= DEEPEST[mode].get(width, -1))


def too_large(layout: Layout) -> str:
    """Empty if a network fits on a multiprocessor in some mode, else why it does not."""
    needed, most = register_bytes(layout, 64), REGISTERS * (1 + SPILLED)
    words = f"{layout.hidden + 1} x {layout.width} needs"
    if needed > most:
        return (
            f"{words} {needed // 1024} KB of registers for its gradients and activations, more "
            f"than {most / 1024:.0f} KB"
        )
    return "" if modes_of(layout) else f"{words} more shared memory than a multiprocessor has"
