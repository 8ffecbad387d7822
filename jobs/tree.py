"""A run file as plain values, each with the place where it was written; only plain YAML types."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import yaml

from schemas.base import Location, Schema
from schemas.run import MethodChoice, Run

MAX_FILE_BYTES = 2**20
MAX_NODES = 20_000
"""Aliases multiply: a file is refused when it stands for more values than this."""

Path_ = tuple[str, ...]


class ConfigError(ValueError):
    """A run that cannot start; `problems` has one line for each error."""

    def __init__(self, problems: Sequence[str]):
        self.problems = [re.sub(r"//[^/@\s]*@", "//***@", line) for line in problems]
        super().__init__("\n".join(self.problems))


@dataclass
class Tree:
    """Plain values of a run file, and where each of them was written."""

    values: dict[str, Any]
    places: dict[Path_, str] = field(default_factory=dict)
    """Dotted path -> "FILE:LINE" or "override 'TEXT'"."""

    def place(self, path: Path_) -> str:
        """Where `path`, or the nearest key above it, was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return "run file"


def read_tree(path: str) -> Tree:
    """Values and line numbers of a YAML file; only plain YAML types, no repeated key."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_FILE_BYTES} bytes; is this a run file?"])
    places: dict[Path_, str] = {(): path}
    values = _parse(data, path, places)
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: a run file is a mapping with name, dataset, method, store"])
    return Tree(values, places)


def _parse(data: bytes | str, path: str, places: dict[Path_, str]) -> Any:
    try:
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            builder = _Builder(loader, path, places)
            values = builder.build(node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError([f"{path}{line}: not valid YAML: {error.problem}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{path}: not valid YAML: {str(error).splitlines()[0]}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: nested too deeply"]) from error
    if builder.problems:
        raise ConfigError(builder.problems)
    return values


class _Builder:
    """Turns YAML nodes into plain values, noting lines, repeated keys and too many aliases."""

    def __init__(self, loader: yaml.SafeLoader, path: str, places: dict[Path_, str]):
        self.loader, self.path, self.places = loader, path, places
        self.problems: list[str] = []
        self.nodes = 0

    def build(self, node: yaml.Node, at: Path_) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise ConfigError([f"{self.path}: stands for more than {MAX_NODES} values (aliases?)"])
        self.places[at] = f"{self.path}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            out: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key, line = str(key_node.value), key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    self.problems.append(f"{self.path}:{line}: a key must be a plain word")
                elif key in out:
                    dotted = ".".join((*at, key))
                    self.problems.append(f"{self.path}:{line}: {dotted}: the key is given twice")
                else:
                    out[key] = self.build(value_node, (*at, key))
                    self.places[(*at, key)] = f"{self.path}:{line}"
            return out
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.build(item, (*at, str(i))) for i, item in enumerate(node.value)]
        return self.loader.construct_object(node, deep=True)


def apply_override(tree: Tree, text: str) -> None:
    """Sets one `key.path=value` in the tree; a URL given as a string becomes its `url` key."""
    name, equals, value_text = text.partition("=")
    source = f"override '{text}'"
    path = tuple(name.split("."))
    if not equals or not all(part.strip() == part != "" for part in path):
        raise ConfigError([f"{source}: must read key.path=value, e.g. method.steps=500"])
    try:
        value = _parse(value_text, source, {})
    except ConfigError as error:
        raise ConfigError([f"{source}: the value is not valid YAML"]) from error
    at = tree.values
    for depth, part in enumerate(path[:-1]):
        below = at.get(part)
        if below is None:
            below = {}
        elif isinstance(below, str) and (short := short_key(path[: depth + 1])):
            below = {short: below}
        elif not isinstance(below, dict):
            dotted = ".".join(path[: depth + 1])
            raise ConfigError([f"{source}: {dotted} is {below!r}, it has no keys below it"])
        at[part] = below
        at = below
    at[path[-1]] = value
    for known in [p for p in tree.places if p[: len(path)] == path]:
        del tree.places[known]
    tree.places[path] = source


def short_key(path: Path_) -> str | None:
    """The key that a plain string stands for at a path, e.g. `url` of a location."""
    model: type[Schema] | None = Run
    for part in path:
        info = model.model_fields.get(part) if model else None
        model = nested(info.annotation) if info else None
    if model is MethodChoice:
        return "name"
    return "url" if model is not None and issubclass(model, Location) else None


def nested(annotation: Any) -> type[Schema] | None:
    """The one Schema class in an annotation such as `Location | None`; None if none or several."""
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType):
        found = [m for a in typing.get_args(annotation) if (m := nested(a))]
        return found[0] if len(found) == 1 else None
    return None
