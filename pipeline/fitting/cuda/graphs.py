"""Steps of lanes as CUDA graphs: captured once for each set of shapes, then replayed.

A step of small networks is some hundred short kernels; launched one by one they wait for the host.
A graph is the same kernels in the same order, so it changes no bits. On a CPU the step is called
as it is; so it is where it cannot be captured (a loss that waits for the device, say).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.fitting.cuda.exact import float32_products

MOST = 16
"""Graphs kept; the one that was not used for longest goes."""
WARM = 3
"""Calls before the capture, in which libraries choose kernels and take their workspace."""


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of dataclasses, lists and dictionaries within one another, in a fixed order."""
    if isinstance(tree, Tensor):
        yield tree
    elif is_dataclass(tree):
        for f in fields(tree):
            yield from tensors_of(getattr(tree, f.name))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_of(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from tensors_of(item)


def with_tensors(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tree with other tensors, in the order of `tensors_of`."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if is_dataclass(tree):
        return replace(
            tree, **{f.name: with_tensors(getattr(tree, f.name), tensors) for f in fields(tree)}
        )
    if isinstance(tree, list | tuple):
        return type(tree)(with_tensors(item, tensors) for item in tree)
    if isinstance(tree, dict):
        return {name: with_tensors(item, tensors) for name, item in tree.items()}
    return tree


@dataclass
class Captured:
    """A graph, what it reads and what it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Any
    seen: list[tuple[Tensor, int]]
    """What was last copied to the inputs, and its version: data that stays is copied once."""

    def __call__(self, tensors: list[Tensor]) -> Any:
        for i, (new, place) in enumerate(zip(tensors, self.inputs)):
            old, version = self.seen[i]
            if new is not old or new._version != version:
                place.copy_(new)
                self.seen[i] = (new, new._version)
        self.graph.replay()
        return with_tensors(self.output, (t.clone() for t in tensors_of(self.output)))


class Graphed:
    """A function of trees of tensors, whose shapes decide everything that it does."""

    pools: dict[torch.device, Any] = {}
    """Graphs share memory: they never run side by side, and what they return is copied."""

    def __init__(self, step: Callable[..., Any]):
        self.step = step
        self.known: OrderedDict[tuple, Captured | None] = OrderedDict()
        self.why = ""
        """Why a step was not captured."""

    def __call__(self, *arguments: Any) -> Any:
        tensors = list(tensors_of(arguments))
        device = tensors[0].device
        if device.type != "cuda":
            return self.step(*arguments)
        key = tuple((t.shape, t.dtype, t.device) for t in tensors)
        with float32_products(), torch.cuda.device(device):
            if key not in self.known:
                self.known[key] = self._captured(arguments, tensors, device)
                while len(self.known) > MOST:
                    self.known.popitem(last=False)
            self.known.move_to_end(key)
            captured = self.known[key]
            return self.step(*arguments) if captured is None else captured(tensors)

    def _captured(
        self, arguments: tuple, tensors: list[Tensor], device: torch.device
    ) -> Captured | None:
        inputs = [tensor.detach().clone() for tensor in tensors]
        fixed = with_tensors(arguments, iter(inputs))
        before, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(before)
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                self.step(*fixed)
        before.wait_stream(aside)
        if device not in self.pools:
            self.pools[device] = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may measure rows meanwhile: what it does must not end the capture.
            with torch.cuda.graph(
                graph, pool=self.pools[device], capture_error_mode="thread_local"
            ):
                output = self.step(*fixed)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.why = " ".join(str(error).split())[:200]
            del self.pools[device]  # the allocator may believe that a capture still fills it
            return None
        finally:
            torch.cuda.set_stream(before)  # a failed capture leaves its own stream current
        return Captured(graph, inputs, output, [(tensor, -1) for tensor in tensors])
