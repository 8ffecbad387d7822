"""Makes a small data set of shapes in five classes, each class in its own file format.

    python -m jobs.demo_shapes OUT --per-class 8

writes OUT/<class>/<class>_000.<suffix>: mugs (OBJ), tables (PLY), chairs (GLB with named, colored
parts), bottles (STL), bolts (OFF).
"""

from __future__ import annotations

import argparse
import sys

from pipeline.ingest.procedural import make_shapes

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    paths = make_shapes(chosen.out, chosen.per_class, chosen.seed)
    sys.stdout.write(f"{len(paths)} shapes in {chosen.out}\n")
