"""One file a method: a configuration class and `build`. A method's name is its module's name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Any

from schemas.base import Schema
from schemas.samples import FormSpec
from schemas.store import FieldSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method


def method_names() -> list[str]:
    """All methods, from the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a method; importing it does not import torch."""
    if name not in method_names():
        raise ValueError(
            f"unknown method {name!r}{_nearest(name, method_names())}; 'methods' lists all of them"
        )
    return importlib.import_module(f"{__name__}.{name}")


def configure(name: str, preset: str = "default", settings: dict[str, Any] | None = None) -> Schema:
    """A method's configuration: a preset with some keys changed."""
    module = load(name)
    presets = module.Config.presets()
    if preset not in presets:
        raise ValueError(f"method {name!r} has no preset {preset!r}; it has {', '.join(presets)}")
    keys = list(module.Config.model_fields)
    for key in settings or {}:
        if key not in keys:
            raise ValueError(
                f"unknown key {key!r} of method {name!r}{_nearest(key, keys)}; its keys: "
                + ", ".join(keys)
            )
    return module.Config.model_validate({**presets[preset].model_dump(), **(settings or {})})


def build(name: str, config: Schema, form: FormSpec) -> Method:
    """A method for a prepared dataset; refuses a kind of data it cannot use.

    Its model is in evaluation mode: only training takes statistics of batches and drops units.
    """
    method = load(name).build(config, form)
    method.model.eval()
    return method


def method_from_spec(spec: FieldSpec) -> Method:
    """The method that wrote a store, from its field specification alone."""
    config = load(spec.method).Config.model_validate(spec.config)
    return build(spec.method, config, FormSpec.model_validate(spec.form))


def _nearest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
