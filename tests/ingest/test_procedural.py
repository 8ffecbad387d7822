"""The procedural shapes of the examples are closed, reproducible and readable in every format."""

import numpy as np

from pipeline.ingest.meshes import decode_shape
from pipeline.ingest.procedural import make_shapes
from schemas.run import ShapeIngest


def test_made_shapes_are_closed_and_have_an_inside(tmp_path):
    paths = make_shapes(tmp_path, 2, 0)
    assert len({p.parent.name for p in paths}) == 5
    assert {p.suffix for p in paths} == {".obj", ".ply", ".glb", ".stl", ".off"}
    ingest = ShapeIngest(near=1024, uniform=4096, surface=1024, held_out=0)
    for path in paths:
        columns = decode_shape({path.name: path.read_bytes()}, path.name, ingest, path.name)
        inside = (np.frombuffer(columns["uniform_distance"], "<f2") < 0).mean()
        assert columns["watertight"], path
        assert columns["doubt"] < 0.001, path
        assert 0.01 < inside < 0.4, path
        assert (columns["part_names"] is not None) == (path.suffix in (".obj", ".glb")), path


def test_made_shapes_depend_on_the_seed_alone(tmp_path):
    first = [p.read_bytes() for p in make_shapes(tmp_path / "a", 2, 3)]
    again = [p.read_bytes() for p in make_shapes(tmp_path / "b", 3, 3)]
    assert set(first) <= set(again)
    assert len(set(first)) == 10
    other = [p.read_bytes() for p in make_shapes(tmp_path / "c", 1, 4)]
    assert not set(first) & set(other)
