"""Reads a run file and its overrides; all errors at once, each with its line and the way out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from jobs.tree import ConfigError, Path_, Tree, apply_override, nested, read_tree
from schemas.base import Location, Schema
from schemas.run import INGEST, MethodChoice, Run


def load_run(
    path: str,
    overrides: Sequence[str] = (),
    *,
    limit: int | None = None,
    folder: str | None = None,
    ingest_only: bool = False,
) -> Run:
    """The run of a YAML file with `key.path=value` overrides; raises ConfigError.

    Args:
        path: The run file.
        overrides: `key.path=value`, values in YAML.
        limit: Take only so many samples, into a store of its own.
        folder: What relative paths are relative to; the current directory when absent.
        ingest_only: The method may be one that cannot fit this kind of sample.
    """
    tree = read_tree(path)
    if "source" in tree.values and "dataset" not in tree.values:
        raise ConfigError(
            [
                f"{tree.place(('source',))}: this file reads a finished store: it is one of "
                "fieldmill prior, gan, probe or segment; a run that makes a store has a dataset"
            ]
        )
    problems: list[str] = []
    for text in overrides:
        try:
            apply_override(tree, text)
        except ConfigError as error:
            problems += error.problems
    if limit is not None:
        _pilot(tree, limit, overrides)
    problems += check_tree(tree, ingest_only=ingest_only)
    if problems:
        raise ConfigError(problems)
    return absolute(complete(Run.model_validate(tree.values)), folder or os.getcwd())


def complete(run: Run) -> Run:
    """The run with every key of its method: a default that is written out makes no other run, and
    a default that another version changes makes one."""
    from pipeline import methods

    name, preset = run.method.name, run.method.preset
    config = methods.configure(name, preset, run.method.settings())
    own = config.deciding()
    if methods.configure(name, preset, own) != config:  # the preset sets one that came later
        own = config.model_dump(mode="json")
    keys = {**run.method.model_dump(include=set(MethodChoice.model_fields), mode="json"), **own}
    return run.model_copy(update={"method": MethodChoice.model_validate(keys)})


def _pilot(tree: Tree, limit: int, overrides: Sequence[str]) -> None:
    """A pilot writes beside the run's store, so that the whole run later starts afresh."""
    tree.values["limit"] = limit
    tree.places[("limit",)] = f"--limit {limit}"
    store = tree.values.get("store")
    url = store.get("url") if isinstance(store, dict) else store
    if isinstance(url, str) and not any(o.startswith(("store=", "store.url=")) for o in overrides):
        stem = url.rstrip("/")
        stem = stem.removesuffix(".zarr")
        url = f"{stem}.limit-{limit}.zarr"
        tree.values["store"] = {**store, "url": url} if isinstance(store, dict) else url
    prepared = tree.values.get("prepared")
    url = prepared.get("url") if isinstance(prepared, dict) else prepared
    if isinstance(url, str) and not any(o.startswith("prepared") for o in overrides):
        url = f"{url.rstrip('/')}.limit-{limit}"
        tree.values["prepared"] = {**prepared, "url": url} if isinstance(prepared, dict) else url


def check_tree(tree: Tree, *, ingest_only: bool = False) -> list[str]:
    """One line for everything that is wrong with the values."""
    problems = [_unknown(tree, path, model) for path, model in _unknown_keys(tree.values, Run, ())]
    values = _without_unknown(tree.values, Run)
    dataset = values.get("dataset")
    kind = dataset.get("kind") if isinstance(dataset, dict) else None
    ingest, given = INGEST.get(kind) if isinstance(kind, str) else None, values.pop("ingest", None)
    if kind in ("views", "sequences"):
        at = tree.place(("dataset", "kind"))
        problems.append(
            f"{at}: dataset.kind: '{kind}' has no reader yet; {_words(INGEST)} can be read"
        )
    if ingest is not None and given is not None:
        if isinstance(given, dict):
            wrong = list(_unknown_keys(given, ingest, ("ingest",)))
            problems += [_unknown(tree, path, model) for path, model in wrong]
            given = _without_unknown(given, ingest)
        problems += _model_errors(tree, ingest, given, ("ingest",))
    values["ingest"] = (ingest or INGEST["images"])()
    problems += _model_errors(tree, Run, values, ())
    problems += _method_problems(tree, values.get("method"), None if ingest_only else kind)
    return problems or _combinations(tree, Run.model_validate(values))


def _model_errors(tree: Tree, model: type[Schema], value: Any, at: Path_) -> list[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return _sentences(tree, at, error)
    return []


def _sentences(tree: Tree, at: Path_, error: ValidationError) -> list[str]:
    """One line a key; where a key may be of several types, what each of them wanted."""
    lines: dict[Path_, str] = {}
    for item in error.errors():
        path = (*at, *(str(part) for part in item["loc"] if not _is_variant(part)))
        if path not in lines:
            lines[path] = _sentence(tree, path, item)
        elif (other := _message(item)) not in lines[path]:
            lines[path] = lines[path].replace(" (it is ", f", or {other} (it is ", 1)
    return list(lines.values())


def _sentence(tree: Tree, path: Path_, item: Any) -> str:
    """One pydantic error as `place: key: sentence`."""
    dotted = ".".join(path) or "run"
    if item["type"] == "missing":
        return f"{tree.place(path)}: {dotted}: this key is required"
    message, shown = _message(item), repr(item["input"])
    if item["type"] != "value_error" and len(shown) < 80:
        message += f" (it is {shown})"
    return f"{tree.place(path)}: {dotted}: {message}"


def _message(item: Any) -> str:
    if item["type"] in ("model_type", "model_attributes_type"):
        return "must be a mapping of keys to values"
    if item["type"] == "string_pattern_mismatch" and item["loc"] == ("name",):
        return "must be letters, digits, '.', '_' and '-' only"
    text = item["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    return text[0].lower() + text[1:]


def _is_variant(part: Any) -> bool:
    """Whether a part of a pydantic location names a member of a union, not a key."""
    return isinstance(part, str) and (
        part in ("int", "str", "float", "[key]")
        or part.startswith(("literal[", "tuple[", "constrained-", "function-"))
        or part == "Location"
        or part.endswith("Ingest")
    )


def _unknown_keys(
    values: dict[str, Any], model: type[Schema], at: Path_
) -> Iterator[tuple[Path_, type[Schema]]]:
    """Paths of keys that the model does not have, with the model that refuses them."""
    for key, value in values.items():
        info = model.model_fields.get(key)
        if info is None:
            if model is not MethodChoice:
                yield (*at, key), model
        elif isinstance(value, dict) and (below := nested(info.annotation)):
            yield from _unknown_keys(value, below, (*at, key))


def _without_unknown(values: dict[str, Any], model: type[Schema]) -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        info = model.model_fields.get(key)
        if info is None and model is not MethodChoice:
            continue
        below = nested(info.annotation) if info is not None else None
        out[key] = _without_unknown(value, below) if below and isinstance(value, dict) else value
    return out


def _unknown(tree: Tree, path: Path_, model: type[Schema]) -> str:
    hint = nearest(path[-1], list(model.model_fields), path[:-1])
    return f"{tree.place(path)}: {'.'.join(path)}: unknown key '{path[-1]}'{hint}"


def nearest(word: str, here: list[str], at: Path_ = ()) -> str:
    """`; did you mean 'x'?` from the keys here, or from all keys of a run file."""
    close = difflib.get_close_matches(word, here, 1, 0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    everywhere = {dotted.rpartition(".")[2]: dotted for dotted in reversed(list(all_keys()))}
    close = [] if at else difflib.get_close_matches(word, everywhere, 1, 0.8)
    if close and everywhere[close[0]] != word:  # which other run files have
        return f"; did you mean '{everywhere[close[0]]}'?"
    return f"; keys of {'.'.join(at) or 'a run file'}: {', '.join(here)}"


def all_keys(model: type[Schema] = Run, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a run file, those of all kinds of ingest included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if below := nested(info.annotation):
            yield from all_keys(below, f"{prefix}{name}.")
    if model is Run:
        for ingest in INGEST.values():
            yield from all_keys(ingest, "ingest.")


def _method_problems(tree: Tree, method: Any, kind: Any) -> list[str]:
    """Errors of the method's name and of the keys of its own config class."""
    from pipeline import methods

    if isinstance(method, str):
        method = {"name": method}
    name = method.get("name") if isinstance(method, dict) else None
    if not isinstance(name, str):
        return []
    at = tree.place(("method", "name"))
    known = list(methods.method_names())
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return [f"{at}: method.name: unknown method '{name}'; {hint}'methods' lists all of them"]
    module = methods.load(name)
    problems = []
    if isinstance(kind, str) and kind in INGEST and kind not in module.KINDS:
        problems.append(f"{at}: method.name: '{name}' fits {_words(module.KINDS)}, not {kind}")
    own = {k: v for k, v in method.items() if k not in MethodChoice.model_fields}
    for key in [k for k in own if k not in module.Config.model_fields]:
        del own[key]
        fields = [
            *module.Config.model_fields,
            *(f for f in MethodChoice.model_fields if f != "name"),
        ]
        hint = nearest(key, fields, ("method",))
        problems.append(f"{tree.place(('method', key))}: method.{key}: unknown key '{key}'{hint}")
    preset = method.get("preset", "default")
    if isinstance(preset, str):
        presets = module.Config.presets()
        where = tree.place(("method", "preset")) if "preset" in method else at
        if preset not in presets:
            names = " or ".join(f"'{each}'" for each in presets)
            return [*problems, f"{where}: method.preset: must be {names}, not '{preset}'"]
        try:
            methods.configure(name, preset, own)
        except ValidationError as error:
            problems += _sentences(tree, ("method",), error)
        except ValueError as error:
            problems.append(f"{at}: method: {error}")
    return problems


def _combinations(tree: Tree, run: Run) -> list[str]:
    """Keys that are right alone and wrong together."""
    from pipeline import methods

    problems = []
    for path, location in locations(run):
        parts = urlsplit(location.url)
        dotted = ".".join(path)
        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            problems.append(
                f"{tree.place(path)}: {dotted}: '{location.url}' names a host '{parts.netloc}'; "
                "a file URL has three slashes, or write a plain path"
            )
        if "@" in (location.endpoint or ""):
            problems.append(
                f"{tree.place((*path, 'endpoint'))}: {dotted}.endpoint: keys must not stand in a "
                "URL; set AWS_ACCESS_KEY_ID and so on"
            )
        if re.search(r"[?&](x-amz-|x-goog-)?signature=|[?&]sig=", location.url, re.I):
            problems.append(
                f"{tree.place(path).partition('=')[0]}: {dotted}: a signed URL is a credential, "
                "which a store must not hold; use an s3 URL with keys from the environment"
            )
        if location.scheme == "memory" and run.resources.workers not in ("auto", 0):
            problems.append(
                f"{tree.place(path)}: {dotted}: memory:// is seen by one process only; "
                "set resources.workers=0, or use a file or s3 URL"
            )
    if run.prepared is not None and run.prepared.url.rstrip("/").endswith(".zarr"):
        problems.append(f"{tree.place(('prepared',))}: prepared: a prepared dataset is not a .zarr")
    store = run.store.url.rstrip("/") + "/"
    for name, inner in (("dataset", run.dataset), ("prepared", run.prepared)):
        if inner is not None and (inner.url.rstrip("/") + "/").startswith(store):
            problems.append(
                f"{tree.place((name, 'url'))}: {name}: '{inner.url}' lies in the store, which "
                "holds nothing but rows; choose another folder for one of them"
            )
    local = run.resources.workers == 0 or run.store.scheme == "memory"
    if local and run.train.workers > 1:
        problems.append(
            f"{tree.place(('train', 'workers'))}: train.workers: {run.train.workers} workers need "
            "Ray, which resources.workers=0 and memory:// exclude; set it to 1, or use a cluster"
        )
    per_sample = methods.load(run.method.name).STRATEGY == "per sample"
    config = methods.configure(run.method.name, run.method.preset, run.method.settings())
    alone = per_sample and getattr(config, "start", "own") != "common"  # a start can be shared
    if alone and run.method.shared_from is not None:
        problems.append(
            f"{tree.place(('method', 'shared_from'))}: method.shared_from: has no effect with "
            f"'{run.method.name}', whose samples share no parameters; remove it"
        )
    if run.fit.trained_rows == "keep" and (per_sample or run.method.shared_from is not None):
        why = "method.shared_from" if run.method.shared_from else f"'{run.method.name}'"
        problems.append(
            f"{tree.place(('fit', 'trained_rows'))}: fit.trained_rows: keep has no effect with "
            f"{why}: nothing is trained; remove it"
        )
    if run.resources.workers == 0 and run.resources.address is not None:
        problems.append(
            f"{tree.place(('resources', 'address'))}: resources.address: has no effect with "
            "resources.workers=0; remove one of them"
        )
    return problems


def locations(run: Run) -> Iterator[tuple[Path_, Location]]:
    """Every location of a run with its path."""
    yield ("dataset",), run.dataset
    yield ("store",), run.store
    if run.prepared is not None:
        yield ("prepared",), run.prepared
    if run.dataset.label.table is not None:
        yield ("dataset", "label", "table"), run.dataset.label.table
    if run.method.shared_from is not None:
        yield ("method", "shared_from"), run.method.shared_from


def absolute(run: Run, folder: str) -> Run:
    """The run with its relative local paths made absolute."""
    dumped = run.model_dump(mode="json")
    for path, location in locations(run):
        if location.scheme == "file" and "://" not in location.url:
            at = dumped
            for part in path:
                at = at[part]
            at["url"] = os.path.abspath(os.path.join(folder, os.path.expanduser(location.url)))
    return Run.model_validate(dumped)


def _words(names: Any) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
