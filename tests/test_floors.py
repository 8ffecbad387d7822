"""The house rule: a module imports only from lower floors; heavy imports stay where they belong."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "schemas": 0,
    "pipeline.storage": 1,
    "pipeline.ingest": 1,
    "pipeline.store": 1,
    "pipeline.draw": 1,
    "pipeline.samples": 1,
    "pipeline.batches": 1,
    "pipeline.observations": 1,
    "pipeline.problems": 1,
    "pipeline.ragged": 1,
    "pipeline.contexts": 1,
    "pipeline.fields": 1,
    "pipeline.encoders": 1,
    "pipeline.rendering": 2,
    "pipeline.objectives": 2,
    "pipeline.fitting": 3,
    "pipeline.methods": 4,
    "pipeline.stages": 5,
    "pipeline.evaluate": 5,
    "pipeline.downstream": 5,
    "pipeline": 5,  # the package's own face: open_store, imported on use
    "jobs": 6,
}
ALOOF = ("pipeline.ingest", "pipeline.store", "pipeline.fields")
"""Rooms of one floor that do not know each other; all may use pipeline.storage."""


def room(module):
    """The longest listed prefix of a module's name."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in FLOORS:
            return ".".join(parts[:length])
    return None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if room(whole) != room(node.module) else node.module, node.lineno)


def modules():
    for top in ("schemas", "pipeline", "jobs"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield path, name


def test_every_import_goes_down():
    wrong = []
    for path, name in modules():
        here = room(name)
        for target, line in imports(path):
            there = room(target)
            if there is None or there == here:
                continue
            up = FLOORS[there] > FLOORS[here]
            strangers = here in ALOOF and there in ALOOF
            if up or strangers:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    """Imports on use count too: they put off a circle, and do not undo it."""
    known = {name: path for path, name in modules()}
    graph = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & known.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                each = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
                graph[name] |= each or {node.module} & known.keys()
    order = TopologicalSorter({name: found - {name} for name, found in graph.items()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_only_jobs_imports_ray():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, name in modules()
        for target, line in imports(path)
        if target.split(".")[0] == "ray" and not name.startswith("jobs")
    ]
    assert not wrong


@pytest.mark.parametrize("module", ["schemas.run", "pipeline.store", "pipeline.ingest", "jobs.cli"])
def test_light_modules_import_neither_torch_nor_ray(module):
    code = f"import {module}, sys; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
