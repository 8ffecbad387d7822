"""Laying a store out before any worker starts; joining it again; letting it grow."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline.storage import Objects
from pipeline.store import keys, layout
from pipeline.store.records import seal, sha256, unseal
from schemas.store import LAYOUT_VERSION, Plan


def create_store(objects: Objects, plan: Plan, shared: dict[str, np.ndarray]) -> Plan:
    """Lays out all arrays at full shape and writes the shared ones; may be called again to join.

    Args:
        objects: The store's location.
        plan: What it will hold. If another process was first with the same fit identity, that
            process's plan stands (it may differ in unit size and lanes).
        shared: Values of the plan's shared arrays, by name without `shared/`.

    Returns:
        The plan that stands.

    Raises:
        ValueError: Another run lies there, or the plan or an array does not fit.
    """
    standing = load_plan(objects)
    if standing is not None:
        require_same_keys(standing, plan.fit_identity, plan.fit_keys, objects.location.url)
        return standing
    layout.check_plan(plan)
    nodes = layout.metadata(plan)
    put_all(objects, {**_shared_chunks(objects, plan, shared, nodes), **_unfinished(nodes)})
    if objects.create(keys.plan_key(0), plan.model_dump_json(indent=1).encode()):
        return plan  # last: where there is a plan, the store is laid out
    standing = load_plan(objects)
    if standing is None:
        raise RuntimeError(f"{objects.location.url}: its plan was removed while it was joined")
    put_all(objects, _unfinished(layout.metadata(standing)))
    require_same_keys(standing, plan.fit_identity, plan.fit_keys, objects.location.url)
    return standing


def _unfinished(nodes: dict[str, bytes]) -> dict[str, bytes]:
    """Metadata before `finalize`: not consolidated."""
    root = json.loads(nodes["zarr.json"])
    del root["consolidated_metadata"]
    return {**nodes, "zarr.json": json.dumps(root, indent=1).encode()}


def load_plan(objects: Objects) -> Plan | None:
    """The newest plan of a store, None if there is no store."""
    return load_numbered_plan(objects)[0]


def load_numbered_plan(objects: Objects, number: int | None = None) -> tuple[Plan | None, int]:
    """The newest plan (or that of a number), and its number; growth adds plans."""
    if number is None:
        found = [int(e.key.rsplit("/", 1)[1].removesuffix(".json")) for e in _plans(objects)]
        if not found:
            return None, -1
        number = max(found)
    text = objects.get(keys.plan_key(number))
    value = json.loads(text)
    if value.get("layout") != LAYOUT_VERSION:
        raise RuntimeError(
            f"{objects.location.url} has layout {value.get('layout')}, this version reads "
            f"{LAYOUT_VERSION}; use the version of fieldmill that wrote it"
        )
    return Plan.model_validate(value), number


def _plans(objects: Objects) -> list[Any]:
    return [entry for entry in objects.list(keys.PLANS) if entry.key.endswith(".json")]


def extend_store(objects: Objects, plan: Plan) -> Plan:
    """Adds segments: new rows from the next shard boundary on; old rows do not move.

    Readers see the old state until the store is finalized again.
    """
    standing, number = load_numbered_plan(objects)
    if standing is None:
        raise ValueError(f"{objects.location.url} holds no store; create it first")
    if plan == standing:
        return standing
    grown = {"rows", "segments", "prepared_fingerprint"}
    for name in Plan.model_fields:
        old, new = getattr(standing, name), getattr(plan, name)
        if name not in grown and old != new:
            raise ValueError(f"growth keeps '{name}': the store has {old}, the new plan {new}")
    if plan.segments[: len(standing.segments)] != standing.segments:
        raise ValueError(
            f"growth keeps rows where they are: the store's segments {standing.segments} must come "
            f"first in {plan.segments}"
        )
    layout.check_plan(plan)
    if not objects.create(keys.plan_key(number + 1), plan.model_dump_json(indent=1).encode()):
        raise RuntimeError(f"{objects.location.url} was extended by another process; run again")
    return plan


def discard_store(objects: Objects, keep: tuple[str, ...] = ()) -> None:
    """Deletes a store, its plans last: cut short, the next call goes on.

    Args:
        objects: The store's location; what lies there and is no part of the store stays.
        keep: Prefixes of objects below `_fieldmill/` that stay, too.
    """
    plan = load_plan(objects)
    if plan is None:
        return
    own = {key.split("/")[0] for key in layout.metadata(plan)} | {keys.PRIVATE, "evaluations"}
    doomed = []
    for entry in objects.list():
        if entry.key.split("/")[0] in own and not entry.key.startswith((keys.PLANS + "/", *keep)):
            doomed.append(entry.key)
        if len(doomed) >= 1000:
            objects.delete(doomed)
            doomed = []
    objects.delete(doomed)
    objects.delete([entry.key for entry in objects.list(keys.PLANS)])


def require_same_keys(plan: Plan, fit_identity: str, fit_keys: dict[str, Any], url: str) -> None:
    """Raises ValueError naming each key that differs from those the store was made with."""
    if plan.fit_identity == fit_identity:
        return
    old, new = _flat(plan.fit_keys), _flat(fit_keys)
    changed = [
        f"{key} was {_shown(old, key)}, is {_shown(new, key)}"
        for key in sorted({*old, *new})
        if _shown(old, key) != _shown(new, key)
    ]
    raise ValueError(
        f"{url} holds rows of another run ({'; '.join(changed) or 'its identity differs'}); "
        "write to another store, or give --replace to discard the rows that are there"
    )


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = [_flat(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()]
        return {key: v for part in parts for key, v in part.items()}
    return {path: value}


def _shown(keys_: dict[str, Any], key: str) -> str:
    return json.dumps(keys_[key], default=str) if key in keys_ else "not set"


def _shared_chunks(
    objects: Objects, plan: Plan, shared: dict[str, np.ndarray], nodes: dict[str, bytes]
) -> dict[str, bytes]:
    """Chunk objects of the shared arrays, agreed on with whoever else creates this store."""
    values = {name.removeprefix("shared/"): value for name, value in shared.items()}
    wanted = {spec.name.removeprefix("shared/"): spec for spec in layout.shared_arrays(plan)}
    if values.keys() != wanted.keys():
        raise ValueError(
            f"the plan's shared arrays are {sorted(wanted)}, values were given for {sorted(values)}"
        )
    chunks: dict[str, bytes] = {}
    for name, spec in wanted.items():
        value = np.asarray(values[name])
        if value.shape != spec.shape or value.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f"shared '{name}' is {value.dtype}{list(value.shape)}, the plan says "
                f"{spec.dtype}{list(spec.shape)}"
            )
        encoded = layout.encode_array(nodes[f"{spec.name}/zarr.json"], value)
        chunks |= {f"{spec.name}/{key}": data for key, data in encoded.items()}
    hashes = {key: (len(data), sha256(data)) for key, data in sorted(chunks.items())}
    if not objects.create(keys.SHARED, seal(json.dumps(hashes).encode())):
        standing = shared_hashes(objects)
        changed = sorted(k for k in chunks if standing.get(k) != hashes[k])
        if changed:
            raise ValueError(
                f"{objects.location.url}: the shared arrays {changed} differ from those that the "
                "store was begun with; write to another store, or remove what is there"
            )
    return chunks


def shared_hashes(objects: Objects) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 of the chunk objects of the shared arrays, by key."""
    try:
        data = unseal(objects.get(keys.SHARED))
    except FileNotFoundError:
        data = None
    if data is None:
        raise RuntimeError(
            f"{objects.location.url}: its record of shared arrays is missing or damaged; "
            "create the store again with the same run file"
        )
    return {key: (size, digest) for key, (size, digest) in json.loads(data).items()}


def put_all(objects: Objects, items: dict[str, bytes]) -> None:
    """Writes many small objects side by side; the root's `zarr.json` last."""
    root = items.get("zarr.json")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(objects.put, *zip(*((k, v) for k, v in items.items() if k != "zarr.json"))))
    if root is not None:
        objects.put("zarr.json", root)
