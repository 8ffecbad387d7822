"""Which columns the keys of ingest make, and that new keys leave old datasets what they were."""

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.ingest.fold import fold
from pipeline.ingest.listing import units_to_do, write_listing
from pipeline.ingest.prepared import open_prepared
from pipeline.ingest.unit import ingest_unit
from pipeline.storage import open_objects
from schemas.base import Location, identity
from schemas.run import INGEST, Dataset, PointIngest, ShapeIngest, ingest_keys
from schemas.samples import FORMS, FormSpec, form_schema

# of the same keys before there were those of `LATER`
BEFORE = {
    "images": "ce738a61ae39f500c7eb804c22e65685c83c3db333f0978c6fe79b87b24796d0",
    "shapes": "ee13b4886f41a93d879afb3ed48f7b617ed592d17d29abe9ec4f51c8d9facb4d",
    "points": "0128538ba0370885e8cf6aed62796325b057c0ff8de257a637d65849418bbdad",
}


@pytest.mark.parametrize("kind", BEFORE)
def test_later_keys_do_not_change_what_a_run_file_meant_before(kind):
    keys = ingest_keys(Dataset(url="/data", kind=kind), INGEST[kind]())
    assert identity(keys) == BEFORE[kind]
    assert form_schema(kind, keys["ingest"]).equals(FORMS[kind])


@pytest.mark.parametrize(
    ("ingest", "key"),
    [
        (ShapeIngest(voxels=32), "voxels"),
        (ShapeIngest(views=3), "views"),
        (ShapeIngest(views=3, view_size=32), "view_size"),
        (ShapeIngest(sign="none"), "sign"),
        (PointIngest(near=1), "near"),
        (PointIngest(uniform=1), "uniform"),
        (PointIngest(normals="require"), "normals"),
    ],
)
def test_a_later_key_that_is_set_makes_another_dataset(ingest, key):
    kind = "shapes" if isinstance(ingest, ShapeIngest) else "points"
    keys = ingest_keys(Dataset(url="/data", kind=kind), ingest)
    assert key in ingest.LATER
    assert keys["ingest"][key] == getattr(ingest, key)
    assert identity(keys) != BEFORE[kind]


def test_keys_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="sign: none leaves open"):
        ShapeIngest(voxels=32, sign="none")
    with pytest.raises(ValidationError, match="no effect with views: 0"):
        ShapeIngest(view_size=32)


def test_unsigned_distances_have_another_name_than_signed_ones():
    signed = form_schema("shapes", {}).names
    soup = form_schema("shapes", {"sign": "none"}).names
    cloud = form_schema("points", {"near": 8}).names
    assert "near_distance" in signed
    for names in (soup, cloud):
        assert not {"near_distance", "held_uniform_distance"} & set(names)
        assert {"near_unsigned_distance", "held_uniform_unsigned_distance"} <= set(names)
    assert "doubt" in soup
    assert "doubt" not in cloud


def test_a_form_written_before_there_were_distances_has_them_when_it_is_signed():
    assert FormSpec.model_validate({"kind": "shapes", "dims": 3, "signed": True}).distances
    assert not FormSpec.model_validate({"kind": "points", "dims": 3}).distances


def cloud(seed: int, normals: bool) -> bytes:
    points = np.random.default_rng(seed).normal(size=(60, 3))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    rows = np.concatenate([points, unit], 1) if normals else points
    return "\n".join(" ".join(f"{x:.6f}" for x in row) for row in rows).encode()


def test_normals_that_one_sample_lacks_are_in_no_row(tmp_path):
    """Else a row would be fitted with them or without, as its neighbours have it."""
    from pipeline.samples import form_of, load_samples

    for i in range(6):
        (tmp_path / f"{i}.xyz").write_bytes(cloud(i, normals=i != 4))
    ingest = PointIngest(unit_objects=2)
    prepared = prepare(tmp_path, tmp_path / "a.prepared", ingest)
    assert "surface_normals" in prepared.meta.missing
    assert "surface_normals" not in prepared.schema.names
    for row in range(6):
        table = prepared.rows(row, row + 1)
        assert not form_of(table, "points").normals
        assert "normals" not in load_samples(table, "points").sets["surface"].columns
    with pytest.raises(ValueError, match="no column surface_normals"):
        prepared.rows(0, 1, columns=["surface_normals"])
    kept = prepare(
        tmp_path, tmp_path / "b.prepared", ingest.model_copy(update={"normals": "require"})
    )
    assert kept.meta.rows == 5
    assert kept.failures()["code"].to_pylist() == ["NO_NORMALS"]
    assert form_of(kept.rows(0, 5), "points").normals


def prepare(folder, to, ingest):
    dataset = Dataset(url=str(folder), kind="points", exclude=("*.prepared/*",))
    location = Location(url=str(to))
    objects = open_objects(location)
    write_listing(dataset, ingest, objects)
    for unit in units_to_do(objects):
        ingest_unit(dataset, ingest, location, unit, "a")
    fold(dataset, ingest, location)
    return open_prepared(location)
