"""Close a model over tensors: the one way in which losses, renderers and readers see parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

Tensors = dict[str, Tensor]
"""Parameters and buffers by dotted name."""
START = "start."
"""Entries under this prefix are a common or learned start of rows, not part of the model."""
RATE = "rate."
"""Entries under this prefix are learned rates of inner steps, not part of the model."""


class Bound:
    """A module together with the parameters it is to use; so is every child of it.

    `bound(x)` evaluates, `bound.trunk` is a bound child, `bound.log_sigma` the tensor in use.
    """

    def __init__(self, module: nn.Module, tensors: Tensors):
        self._module = module
        self._tensors = tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._module, self._tensors, args, kwargs, strict=True)

    def __getattr__(self, name: str) -> Any:
        if name in self._tensors:
            return self._tensors[name]
        value = getattr(self._module, name)
        return _child(value, name, self._tensors) if isinstance(value, nn.Module) else value

    def __getitem__(self, index: int) -> Bound:
        """A member of a bound list of modules."""
        index = range(len(self._module))[index]
        return _child(self._module[index], str(index), self._tensors)


def _child(module: nn.Module, name: str, tensors: Tensors) -> Bound:
    prefix = name + "."
    return Bound(module, {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})


def tensor_names(model: nn.Module) -> list[str]:
    """Names of all parameters and buffers, in the order of the model."""
    return [name for name, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()]


def bind(model: nn.Module, tensors: Tensors) -> Bound:
    """Binds exactly the parameters and buffers of `model`; each may have a leading sample axis.

    Starts and rates (`START`, `RATE`) that lie among shared tensors are left out.
    """
    tensors = {k: v for k, v in tensors.items() if not k.startswith((START, RATE))}
    names = set(tensor_names(model))
    if names != tensors.keys():
        missing, extra = sorted(names - tensors.keys()), sorted(tensors.keys() - names)
        raise ValueError(f"cannot bind {type(model).__name__}: missing {missing}, unknown {extra}")
    return Bound(model, tensors)
