"""Units through whatever a plan chose for them: lanes, a compiled loop, or the kernel of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pipeline.fields.bind import Tensors
from pipeline.fitting.lane_stream import LaneStream
from pipeline.fitting.method import MetaLearned, Method
from pipeline.fitting.units import Pull, Unit


class Stream:
    """Fits the units that `run` pulls; what was compiled or made ready stays."""

    run: Callable[[Pull], Iterator[Unit]]
    """Each unit is yielded when its last row is done."""

    def __init__(
        self,
        method: Method,
        shared: Tensors,
        *,
        lanes: int | None = None,
        device: str | torch.device = "cpu",
        compiled: bool = False,
        fused: bool = False,
        kernel: str = "",
        parts: int = 1,
    ):
        """Takes lanes, unless `fused` (a compiled loop of CPUs) or `kernel` (of GPUs, in this
        precision; of meta-learned methods on CPUs a compiled loop) says otherwise."""
        self.method = method
        self.by_lanes = LaneStream(
            method, shared, lanes=lanes, device=device, compiled=compiled, parts=parts
        )
        shared, device = self.by_lanes.shared, self.by_lanes.device
        if kernel and device.type == "cpu" and isinstance(method, MetaLearned):
            from pipeline.fitting.encoding import Loop

            self.run = Loop(method, shared, kernel).run
        elif kernel:
            from pipeline.fitting.cuda.stream import fit_by_kernel

            if device.type != "cuda":
                raise ValueError(
                    f"the plan chose the kernel of GPUs, this worker computes on {device}"
                )
            self.run = fit_by_kernel(method, shared, kernel, device)
        elif fused:
            from pipeline.fitting.fused.stream import fit_by_loop

            if device.type != "cpu":
                raise ValueError(
                    f"the plan chose the compiled loop of CPUs, this worker computes on {device}"
                )
            self.run = fit_by_loop(method, shared)
        else:
            self.run = self.by_lanes.run

    @property
    def occupancy(self) -> tuple[int, int, int]:
        """Steps of lanes, lanes computed in them all told, and those of them that held a row."""
        return self.by_lanes.occupancy
