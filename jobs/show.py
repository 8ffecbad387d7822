"""The verbs that only look: plan, status, methods, config show. Neither torch nor Ray."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from jobs import text
from jobs.config import load_run
from jobs.driver import exists
from jobs.text import PACE
from pipeline.storage import Objects, open_objects
from schemas.base import Location
from schemas.run import Run
from schemas.store import RowStatus


def do_methods(arguments: argparse.Namespace) -> int:
    """One line a method, or all keys of one."""
    from pipeline import methods

    names = [arguments.name] if arguments.name else methods.method_names()
    found = {name: describe_method(methods.load(name)) for name in names}
    if arguments.json:
        text.say(json.dumps(found, indent=2))
        return 0
    if arguments.name:
        of = found[arguments.name]
        text.say(f"{arguments.name}: {of['summary']}")
        text.say(f"  {of['paper']}")
        for key, about in of["keys"].items():
            text.say(f"  {key} = {about['default']}   {about['description']}")
        return 0
    rows = [
        [name, ", ".join(of["kinds"]), of["strategy"], of["paper"]] for name, of in found.items()
    ]
    text.say(text.table(rows, header=["method", "kinds", "strategy", "paper"]))
    return 0


def describe_method(module: Any) -> dict[str, Any]:
    """What a method's module says of itself, without building it."""
    fields = module.Config.model_fields
    defaults = module.Config().model_dump(mode="json")
    return {
        "summary": " ".join((module.__doc__ or "").strip().split("\n\n")[0].split()),
        "paper": str(module.PAPER),
        "kinds": list(module.KINDS),
        "strategy": str(getattr(module, "STRATEGY", "")),
        "stores": str(getattr(module, "STORES", "")),
        "keys": {
            name: {
                "default": defaults[name],
                "description": " ".join((info.description or "").split()),
            }
            for name, info in fields.items()
        },
    }


def do_config(arguments: argparse.Namespace) -> int:
    """The run with every default filled in, as YAML that can be run."""
    run = load_run(arguments.run_file, arguments.overrides, limit=arguments.limit)
    full = run.model_dump(mode="json")
    full["prepared"] = run.prepared_location.model_dump(mode="json")
    text.say(yaml.safe_dump(full, sort_keys=False, allow_unicode=True).rstrip())
    return 0


def do_plan(arguments: argparse.Namespace) -> int:
    """What the run would read, fit and write."""
    run = load_run(arguments.run_file, arguments.overrides, limit=arguments.limit)
    for line in plan_lines(run):
        text.say(line)
    return 0


def plan_lines(run: Run) -> Iterator[str]:
    """The dataset with its labels, and what is done of each stage."""
    from pipeline import store as stores

    yield f"{run.name}: {run.method.name} ({run.method.preset}) on {run.dataset.kind}"
    yield f"  dataset   {run.dataset.url}"
    yield f"  prepared  {run.prepared_location.url}"
    yield f"  store     {run.store.url}"
    workers = run.resources.workers
    each = f"{run.resources.cores} core(s), {run.resources.gpus:g} GPU"
    where = run.resources.address or os.environ.get("RAY_ADDRESS") or "this machine"
    place = "this process, no Ray" if workers == 0 else f"{workers} workers of {each}; {where}"
    yield f"  computes  {place}"
    yield ""
    meta = prepared_meta(run)
    if meta is not None:
        yield f"prepared: listed {meta.listed}, {text.counts(meta.counts)}"
        yield f"  splits: {text.counts(meta.splits)}"
        yield from label_lines(meta.labels)
        rows = meta.rows if run.limit is None else min(meta.rows, run.limit)
    else:
        rows, tars, labels, ignored = listed(run)
        more = f" and {tars} tar files, whose members are counted as they are read" if tars else ""
        yield f"not prepared yet; the listing has {rows} samples to read{more}"
        if ignored:
            yield f"  ignored: {text.counts(ignored)}"
        yield from label_lines(labels)
    plan = stores.load_plan(open_existing(run.store)) if exists(run.store) else None
    if plan is None:
        taken = rows if run.limit is None else min(rows, run.limit)
        many = " and those of the tar files" if meta is None and tars else ""
        yield f"store: to be made, for up to {taken} rows{many}"
        return
    yield f"store: {plan.rows} rows in {plan.units} units of {plan.unit_rows}"
    if plan.fit_identity != run.stage_identity("fit"):
        for key, old, new in differing(plan.fit_keys, run.stage_keys("fit")):
            yield f"  differs: {key}: {old} in the store, {new} here"
        yield "  run would refuse: name another store, or restore these keys"
    yield from progress_lines(open_existing(run.store), plan)


def label_lines(labels: dict[str, int], most: int = 30) -> Iterator[str]:
    """Labels with counts, the largest first."""
    if not labels:
        yield "  labels: none"
        return
    yield f"  labels: {len(labels)}"
    ranked = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    for name, count in ranked[:most]:
        yield f"    {name or '(none)'}: {count}"
    if len(ranked) > most:
        yield f"    ... and {len(ranked) - most} more"


def listed(run: Run) -> tuple[int, int, dict[str, int], dict[str, int]]:
    """Samples, tar files, samples by label, ignored files by suffix: of a listing that is not kept.

    A tar file's members are known once it is read; those of other containers are counted here.
    """
    from pipeline.ingest import listing, segments
    from pipeline.ingest.labels import Labeler, Levels

    scratch = open_objects(Location(url=f"memory://plan-{os.getpid()}-{id(run)}/"))
    listing.write_listing(run.dataset, run.ingest, scratch)
    (segment,) = segments.read_segments(scratch)
    levels, names, tars = Levels(), [], 0
    for unit in range(segment.units):
        for entry in segments.read_entries(scratch, unit):
            if entry["stop"] < 0:
                tars += 1
                continue
            names.append((entry["sample_id"], entry["label"], entry["stop"] - entry["start"]))
            if entry["label"] is None:
                levels.see(entry["sample_id"])
    labeler, found = Labeler(run.dataset.label, levels.shallowest()), Counter()
    for name, given, samples in names:
        found[labeler.label(name, given)] += samples
    found.pop(None, None)
    return sum(samples for *_, samples in names), tars, dict(found), segment.kinds


def prepared_meta(run: Run) -> Any:
    """`prepared.json` of a finished prepared dataset, else None."""
    from pipeline.ingest.prepared import open_prepared

    if not exists(run.prepared_location):
        return None
    objects = open_existing(run.prepared_location)
    if objects.size("prepared.json") is None:
        return None
    return open_prepared(run.prepared_location).meta


def open_existing(location: Location) -> Objects:
    """A location that is looked at; FileNotFoundError for a local folder that is not there."""
    if not exists(location):
        raise FileNotFoundError(f"{location.url} does not exist")
    return open_objects(location)


def differing(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differing(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at, old, new


# --- status ---------------------------------------------------------------------------------


def target_of(arguments: argparse.Namespace) -> tuple[Location, Run | None]:
    """The store of a URL, a path or a run file."""
    name = arguments.target
    if name.endswith((".yaml", ".yml")) and os.path.isfile(name):
        run = load_run(name)
        return run.store, run
    if "://" not in name:
        name = os.path.abspath(os.path.expanduser(name))
    keys = ("endpoint", "region", "profile", "anonymous")
    try:
        return Location(url=name, **{key: getattr(arguments, key) for key in keys}), None
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"{arguments.target}: {why}") from None


def do_status(arguments: argparse.Namespace) -> int:
    """How far a run is."""
    from pipeline import store as stores

    location, run = target_of(arguments)
    found: dict[str, Any] = {"store": location.url, "stage": "not begun"}
    if run is not None:
        found |= ingest_status(run)
    plan = stores.load_plan(open_existing(location)) if exists(location) else None
    if plan is None and run is None:
        raise FileNotFoundError(f"{location.url} holds no store")
    if plan is not None:
        found |= fit_status(open_existing(location), plan)
    if arguments.json:
        text.say(json.dumps(found, indent=2))
        return 0
    text.say(f"{location.url}: {found['stage']}")
    if "ingest_units" in found:
        text.say(f"  ingest: {found['ingest_done']} of {found['ingest_units']} units")
    if plan is not None:
        for line in progress_lines(open_existing(location), plan):
            text.say(line)
    return 0


def ingest_status(run: Run) -> dict[str, Any]:
    """Units of the ingest that are listed and done."""
    from pipeline.ingest import listing

    if not exists(run.prepared_location):
        return {}
    objects = open_existing(run.prepared_location)
    units = sum(segment.units for segment in listing.read_segments(objects))
    if not units:
        return {}
    done = units - len(listing.units_to_do(objects))
    stage = "prepared" if prepared_meta(run) is not None else "ingesting"
    return {"stage": stage, "ingest_units": units, "ingest_done": done}


def fit_status(objects: Objects, plan: Any) -> dict[str, Any]:
    """Units fitted and published, rows by status, and the pace of whoever works on it."""
    from pipeline import store as stores
    from pipeline.store.records import latest_final

    state = stores.progress(objects, plan)
    final, _ = latest_final(objects)
    finished = final is not None and state.complete and final.units == state.published
    reader = stores.open_arrays(objects.location, partial=not finished)
    names = Counter(RowStatus(s).name.lower() for s in reader.index["status"].to_pylist())
    found: dict[str, Any] = {
        "stage": "complete" if finished else "fitting",
        "units": plan.units,
        "rows": sum(segment.rows for segment in plan.segments),
        "units_fitted": plan.units - len(state.to_fit),
        "units_published": len(state.published),
        "rows_by_status": dict(names),
    }
    pace = read_pace(objects)
    if pace and pace["stage"] == "fit" and not finished:
        left = plan.units - len(state.published)
        found["seconds_since_news"] = max(0.0, time.time() - pace["updated"])
        found["samples_s"] = pace["samples_s"]
        found["seconds_left"] = left * pace["unit_s"] / pace["workers"]
    return found


def read_pace(objects: Objects) -> dict[str, Any] | None:
    """The last note of a driver about its pace."""
    try:
        return json.loads(objects.get(PACE))
    except FileNotFoundError:
        return None


def progress_lines(objects: Objects, plan: Any) -> Iterator[str]:
    """`fit_status` in words."""
    found = fit_status(objects, plan)
    yield (
        f"  fit: {found['stage']}; of {found['units']} units {found['units_fitted']} are fitted, "
        f"{found['units_published']} published"
    )
    yield f"  rows: {text.counts(found['rows_by_status'])}; {found['rows']} in all"
    if "seconds_left" in found:
        yield (
            f"  {found['samples_s']:.3g} samples/s; about {text.duration(found['seconds_left'])} "
            f"left; last news {text.duration(found['seconds_since_news'])} ago"
        )
