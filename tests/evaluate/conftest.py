"""Two small stores that the tests of this folder read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluate.opened import OpenedStore, open_store
from schemas.base import Location
from tests.evaluate.prepared import picture_table, shape_table
from tests.evaluate.stores import fitted_store


@dataclass(frozen=True)
class Made:
    """A store and what it was made from."""

    location: Location
    table: pa.Table

    def open(self) -> OpenedStore:
        return open_store(self.location)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Made:
    """Nine smooth pictures of two sizes."""
    y, x = np.mgrid[0:1:16j, 0:1:20j]
    made = []
    for i in range(9):
        color = np.stack([x, y, 0.5 + 0.5 * np.sin(3 * x + i)], -1)
        made.append(color[:12, :14] if i % 3 == 2 else color)
    table = picture_table(pictures=made, held_out=0.1)
    location = Location(url=str(tmp_path_factory.mktemp("stores") / "pictures.zarr"))
    settings = {
        "width": 24, "depth": 2, "steps": 150, "target_psnr": None,
        "omega_first": 5.0, "omega_hidden": 15.0, "rate": 5e-3,
    }  # fmt: skip
    fitted_store(location, table, "images", "siren", settings)
    return Made(location, table)


@pytest.fixture(scope="session")
def spheres(tmp_path_factory) -> Made:
    """Six spheres of radius 0.35 to 0.6 as DeepSDF codes; their files were ten times as large,
    off the origin."""
    table = shape_table(
        radii=np.linspace(0.35, 0.6, 6), points=4000, center=(5.0, -2.0, 7.0), scale=0.1
    )
    location = Location(url=str(tmp_path_factory.mktemp("stores") / "spheres.zarr"))
    settings = {
        "code": 2, "width": 32, "depth": 3, "skip": None, "points": 512, "batch": 6,
        "train_steps": 300, "fit_steps": 120, "fit_points": 512, "fit_rate": 2e-2,
        "clamp": 0.5, "rate": 3e-3, "code_rate": 1e-2,
    }  # fmt: skip
    fitted_store(location, table, "shapes", "deepsdf", settings)
    return Made(location, table)
