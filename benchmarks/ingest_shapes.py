"""Time of decoding shapes against the bare geometry-library calls on the same arrays.

    python -m benchmarks.ingest_shapes [FOLDER] [--shapes 40] [--write]

Bare calls: libigl's `fast_winding_number`, its distance tree (build and query) at the stored query
points in their stored order, and the area-uniform surface sampling of trimesh, for as many points.
Decoding: bytes of the file to the columns of a prepared shard. Both in one process with one thread,
in turn, the better of two rounds each. Without a folder the shapes of
`pipeline/ingest/procedural.py`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("IGL_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import igl
import numpy as np
import trimesh

from pipeline.ingest.meshes import SHAPE_SUFFIXES, clean_mesh, decode_shape, read_mesh
from pipeline.ingest.normalize import from_steps, normalization
from schemas.run import ShapeIngest
from schemas.samples import RejectedSample

TARGET = 1.25
SETS = ("near", "held_near", "uniform", "held_uniform")


def chosen_files(folder: Path, count: int) -> list[Path]:
    """A seeded choice of the mesh files below a folder, spread over its subfolders."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SHAPE_SUFFIXES)
    order = np.random.default_rng(0).permutation(len(files))
    rank: dict[Path, int] = {}
    keyed = []
    for index in order:
        rank[files[index].parent] = rank.get(files[index].parent, 0) + 1
        keyed.append((rank[files[index].parent], int(index)))
    return [files[index] for _, index in sorted(keyed, key=lambda pair: pair[0])[:count]]


def bare_calls(solid: trimesh.Trimesh, queries: np.ndarray, surface: int) -> float:
    """Seconds of the library calls alone; all arrays are ready."""
    vertices, faces = np.array(solid.vertices), np.array(solid.faces, np.int64)
    start = time.perf_counter()
    igl.fast_winding_number(vertices, faces, queries)
    tree = igl.AABB()
    tree.init(vertices, faces)
    tree.squared_distance(vertices, faces, queries)
    trimesh.sample.sample_surface(solid, surface, seed=0)
    return time.perf_counter() - start


def measure(data: bytes, name: str, ingest: ShapeIngest) -> dict[str, float]:
    """Seconds of both for one file, its faces and its doubt."""
    columns = decode_shape({name: data}, name, ingest, name)
    mesh = clean_mesh(read_mesh({name: data}, name, ingest.max_faces))
    mesh = replace(mesh, vertices=normalization(mesh.vertices, "sphere").to_box(mesh.vertices))
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    stored = b"".join(columns[f"{s}_coords"] for s in SETS)
    queries = from_steps(np.frombuffer(stored, "<u2").reshape(-1, 3))
    surface = ingest.near + ingest.surface + 2 * ingest.held_out
    bare, full, parse = [], [], []
    for _ in range(2):
        bare.append(bare_calls(solid, queries, surface))
        start = time.perf_counter()
        decode_shape({name: data}, name, ingest, name)
        full.append(time.perf_counter() - start)
        start = time.perf_counter()
        read_mesh({name: data}, name, ingest.max_faces)
        parse.append(time.perf_counter() - start)
    return {
        "bare": min(bare), "full": min(full), "parse": min(parse),
        "faces": columns["faces"], "doubt": columns["doubt"], "watertight": columns["watertight"],
    }  # fmt: skip


def report(rows: list[dict[str, float]], rejected: list[str], what: str) -> str:
    """The result as Markdown."""
    table = {key: np.array([row[key] for row in rows], float) for key in rows[0]}
    ratio = table["full"].sum() / table["bare"].sum()
    each = np.quantile(table["full"] / table["bare"], [0.5, 0.9, 1])
    seconds = table["full"]
    lines = [
        f"# Ingest of shapes: {what}",
        "",
        "    python -m benchmarks.ingest_shapes FOLDER --write",
        "",
        f"{len(rows)} shapes, default ingest (65,536 near, 32,768 uniform, 32,768 surface points,",
        f"3 x 8,192 held out), one thread, {platform.machine()},",
        f"Python {platform.python_version()}, numpy {np.__version__},",
        f"trimesh {trimesh.__version__}.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| bytes to columns / bare library calls, total (target <= {TARGET}) | **{ratio:.2f}** |",
        f"| the same by shape: median, 90 %, worst | {each[0]:.2f}, {each[1]:.2f}, {each[2]:.2f} |",
        f"| seconds a shape: median, worst | {np.median(seconds):.2f}, {seconds.max():.2f} |",
        f"| of it parsing: share of the total | {table['parse'].sum() / seconds.sum():.1%} |",
        f"| shapes/s a core | {len(rows) / seconds.sum():.2f} |",
        f"| faces: median, most | {np.median(table['faces']):,.0f}, {table['faces'].max():,.0f} |",
        f"| doubt: median, largest | {np.median(table['doubt']):.1%}, {table['doubt'].max():.1%} |",
        f"| watertight | {int(table['watertight'].sum())} |",
        f"| rejected | {len(rejected)} |",
    ]
    return "\n".join([*lines, *(f"\nRejected: {text}" for text in rejected)]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--shapes", type=int, default=40)
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/ingest_shapes.md"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if given.folder is None:
            from pipeline.ingest.procedural import make_shapes

            make_shapes(made, per_class=4)
        folder = Path(given.folder or made)
        rows, rejected = [], []
        for path in chosen_files(folder, given.shapes):
            try:
                rows.append(measure(path.read_bytes(), path.name, ShapeIngest()))
            except RejectedSample as error:
                rejected.append(f"{path.name}: {error.code.value} {error}")
        what = Path(given.folder).name if given.folder else "pipeline/ingest/procedural.py"
    if not rows:
        print(f"no mesh below {folder} could be read", file=sys.stderr)
        return 2
    text = report(rows, rejected, what)
    print(text)
    if given.write:
        (Path(__file__).parent / "results" / "ingest_shapes.md").write_text(text)
    total = sum(r["full"] for r in rows) / sum(r["bare"] for r in rows)
    return 0 if total <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
