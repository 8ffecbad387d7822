"""A store opened for use: find rows, evaluate them anywhere, render them, mesh them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import trimesh
from jaxtyping import Float
from torch import Tensor

from pipeline.evaluate.inside import level_of, signed_values
from pipeline.evaluate.mesh_refinement import refine_mesh
from pipeline.evaluate.meshing import Box, extract_mesh
from pipeline.evaluate.rendering import Rendering, View, render_mesh, render_picture
from pipeline.evaluate.signals import Sound, Video, render_sound, sound, video
from pipeline.evaluate.wave_pictures import NODES, SIDE, render_wave, wave_grid
from pipeline.evaluate.where import Where, mask_of, where_mask
from pipeline.fields.bind import Bound, bind
from pipeline.fitting.method import Method
from pipeline.fitting.rows import bindable, unpack, unpack_shared
from pipeline.methods import method_from_spec
from pipeline.store import open_arrays
from schemas.base import Location
from schemas.store import USABLE, FieldSpec, Plan, RowStatus

PICTURE_SIDE = 256
"""Pixels of the longer side where a store does not say how large its pictures were."""


def open_store(
    url: str | Location, *, partial: bool = False, device: str | torch.device = "cpu"
) -> OpenedStore:
    """Opens a finished store, or with `partial` the published rows of one in progress."""
    location = url if isinstance(url, Location) else Location(url=url)
    return OpenedStore(open_arrays(location, partial=partial), device)


class OpenedStore:
    """Fields by row. `row` is a row number or a sample id everywhere."""

    def __init__(self, reader: Any, device: str | torch.device = "cpu"):
        self.reader = reader
        self.device = torch.device(device)
        self._bound: tuple[int, Bound] | None = None

    @property
    def index(self) -> pa.Table:
        """One line a row: `row`, sample_id, label, split, status, ..., and every metric."""
        return self.reader.index

    @property
    def plan(self) -> Plan:
        return self.reader.plan

    @property
    def spec(self) -> FieldSpec:
        """What the fields are: layers, conventions, method and its configuration."""
        return self.plan.field

    def __len__(self) -> int:
        """Rows that have a sample, usable or not."""
        return self.index.num_rows

    @cached_property
    def method(self) -> Method:
        method = method_from_spec(self.spec)
        method.model.eval()
        return method

    @cached_property
    def shared(self) -> dict[str, Tensor]:
        return unpack_shared(self.reader.shared(), self.device)

    @property
    def quantity(self) -> str:
        """What the fields give: color, sdf or occupancy."""
        return self.spec.output["quantity"]

    # --- finding rows -----------------------------------------------------------------------

    def rows(
        self,
        *,
        id: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        split: str | Sequence[str] | None = None,
        status: Sequence[RowStatus] | None = USABLE,
        where: Where | None = None,
    ) -> list[int]:
        """Numbers of the rows that meet all conditions, ascending; only usable ones by default.

        Args:
            status: Statuses that are wanted; None takes all.
            where: Bounds on columns, e.g. `{"psnr": (30, None)}`; NaN meets no bound.
        """
        chosen = np.ones(len(self), bool)
        for name, wanted in (("sample_id", id), ("label", label), ("split", split)):
            if wanted is not None:
                values = [wanted] if isinstance(wanted, str) else list(wanted)
                chosen &= mask_of(pc.is_in(self.index[name], pa.array(values, pa.string())))
        if status is not None:
            chosen &= np.isin(self.index["status"].to_numpy(), [int(s) for s in status])
        if where is not None:
            chosen &= where_mask(self.index, where)
        return self.index["row"].to_numpy()[chosen].tolist()

    def row_number(self, row: int | str) -> int:
        """The number of a row given by number or sample id; an unknown one names the nearest."""
        if isinstance(row, str):
            found = self.rows(id=row, status=None)
            if not found:
                near = self.nearest_ids(row)
                hint = f"; nearest: {', '.join(near)}" if near else ""
                raise ValueError(f"no sample '{row}' among the {len(self)} rows{hint}")
            return found[0]
        if row not in self._line_of_row:
            numbers = self.index["row"].to_numpy()
            spread = f"{numbers.min()} to {numbers.max()}" if len(numbers) else "none"
            raise ValueError(f"no row {row}; rows with a sample: {spread}")
        return int(row)

    def line(self, row: int | str) -> dict[str, Any]:
        """The index line of a row."""
        line = self._line_of_row[self.row_number(row)]
        return {name: self.index[name][line].as_py() for name in self.index.column_names}

    def nearest_ids(self, sample: str, count: int = 3) -> list[str]:
        """Sample ids that look most like `sample`: by file name first, then as a whole."""
        ids = self.index["sample_id"]
        stem = sample.rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()
        close = (
            ids.filter(pc.match_substring(pc.utf8_lower(ids), stem)) if stem else ids.slice(0, 0)
        )
        pool = [*close.slice(0, 1000).to_pylist(), *ids.slice(0, 20_000).to_pylist()]
        near = difflib.get_close_matches(sample, dict.fromkeys(pool), n=count, cutoff=0.3)
        return near or close.slice(0, count).to_pylist()

    @cached_property
    def _line_of_row(self) -> dict[int, int]:
        return {row: line for line, row in enumerate(self.index["row"].to_pylist())}

    # --- using a row ------------------------------------------------------------------------

    def row_tensors(self, row: int | str) -> dict[str, Tensor]:
        """What a row owns, by parameter name, each with a sample axis of length 1."""
        number = self.row_number(row)
        line = self.line(number)
        status = RowStatus(line["status"])
        if status not in USABLE:
            reason = " ".join(filter(None, (line["code"], line["message"])))
            raise ValueError(
                f"row {number} ('{line['sample_id']}') has no field: it is {status.name.lower()}"
                + (f" ({reason})" if reason else "")
            )
        names = [spec.name for spec in self.plan.arrays if spec.rows]
        arrays = {name: self.reader.array(name, [number]) for name in names}
        return unpack(self.method, arrays, self.device)

    def bound(self, row: int | str) -> Bound:
        """The model closed over a row's tensors, sample axis of length 1; the last one is kept."""
        number = self.row_number(row)
        if self._bound is None or self._bound[0] != number:
            rows = self.row_tensors(number)
            tensors = bindable(self.method, self.shared, rows)
            self._bound = number, bind(self.method.field.model, tensors)
        return self._bound[1]

    def values(
        self, row: int | str, coords: Float[Tensor, "p d"] | np.ndarray, *, chunk: int | None = None
    ) -> dict[str, Tensor]:
        """Named quantities `[p, ...]` of a row at coordinates; `spec.coords` says in which."""
        bound, read = self.bound(row), self.method.field.read
        coords = torch.as_tensor(coords, dtype=torch.float32, device=self.device)
        if coords.ndim != 2 or coords.shape[1] != self.dims:
            raise ValueError(
                f"coordinates of shape {list(coords.shape)}: '{self.plan.name}' wants "
                f"[points, {self.dims}]"
            )
        chunk = chunk or (2**13 if self.device.type == "cpu" else 2**18)
        with torch.no_grad():
            parts = [read(bound, part[None]) for part in coords.split(chunk)]
        return {name: torch.cat([part[name][0] for part in parts]) for name in parts[0]}

    def render(
        self,
        row: int | str,
        resolution: int | tuple[int, int] | None = None,
        *,
        view: View | None = None,
    ) -> Rendering:
        """A row as a picture: images at any size, shapes as a shaded view of their mesh, sounds as
        their wave, videos by the frame in the middle.

        Args:
            resolution: Height and width, or the longer side; absent: the fitted picture's own size,
                128 for shapes.
        """
        if self.quantity == "amplitude":
            size = (resolution,) if isinstance(resolution, tuple) else ()
            return render_sound(self.sound(row).amplitude, *size)
        if self.kind == "video":
            made = self.video(row, resolution)
            return Rendering(made.at(made.frames // 2))
        if self.quantity == "color" and self.dims == 2:
            height, width = self._picture_size(row, resolution)
            return render_picture(lambda x: self.values(row, x)["color"], height, width)
        if self.quantity == "wave":
            side = longer_side(resolution, SIDE)
            return render_wave(self._wave(row), self.line(row), self.spec.coords["axes"], side)
        if self.dims != 3:
            raise ValueError(f"fields of '{self.quantity}' in {self.dims} axes cannot be rendered")
        side = longer_side(resolution, 128)
        mesh = self.mesh(row, min(max(side // 2, 48), 128), original_units=False)
        return render_mesh(mesh, side, view=view)

    def sound(self, row: int | str, rate: int | None = None) -> Sound:
        """A row of sounds, at its own rate or at another: the field is continuous."""
        if self.quantity != "amplitude":
            raise ValueError(f"'{self.plan.name}' holds fields of '{self.quantity}', not sounds")
        line = self.line(row)
        own, length = line["rate"], line["length"]
        steps = length if rate is None else max(round(length * rate / own), 1)
        return sound(
            lambda x: self.values(row, x)["amplitude"], steps, rate or own, float(line["peak"])
        )

    def video(
        self, row: int | str, resolution: int | tuple[int, int] | None = None, *, pace: float = 1.0
    ) -> Video:
        """A row of videos at any size of its frames.

        Args:
            resolution: Height and width, or the longer side; absent: as fitted.
            pace: Frames for each fitted one: 2 puts one between any two, at twice the rate.
        """
        if self.kind != "video":
            raise ValueError(f"'{self.plan.name}' holds {self.kind}, not videos")
        line = self.line(row)
        frames = max(round(line["frames"] * pace), 1)
        return video(
            lambda x: self.values(row, x)["color"],
            (frames, *self._picture_size(row, resolution)),
            line["fps"] * pace,
        )

    def wave(
        self, row: int | str, resolution: int | tuple[int, int] | None = None
    ) -> Float[np.ndarray, "*grid c"]:
        """A row of waves in its file's units at evenly spaced nodes from border to border: along x
        as many as `resolution` (or the longer of two) says, of those that pass in time a quarter as
        many from start to end, first axis t. Channels are real and imaginary part, or the height.
        """
        if self.quantity != "wave":
            raise ValueError(f"'{self.plan.name}' holds fields of '{self.quantity}', no waves")
        axes, side = self.spec.coords["axes"], longer_side(resolution, NODES)
        return wave_grid(self._wave(row), self.line(row), axes, side)

    def _wave(self, row: int | str) -> Callable[[Tensor], Tensor]:
        return lambda x: self.values(row, x)["wave"]

    @property
    def kind(self) -> str:
        """What the samples were: images, audio, video, shapes, points, equations."""
        return self.spec.form.get("kind", "")

    @property
    def dims(self) -> int:
        return len(self.spec.coords["axes"])

    def _picture_size(
        self, row: int | str, resolution: int | tuple[int, int] | None
    ) -> tuple[int, int]:
        if isinstance(resolution, tuple):
            return resolution
        line = self.line(row)
        height, width = line.get("height") or PICTURE_SIDE, line.get("width") or PICTURE_SIDE
        if resolution is None:
            return height, width
        longer = max(height, width)
        return max(round(height * resolution / longer), 1), max(
            round(width * resolution / longer), 1
        )

    def mesh(
        self, row: int | str, resolution: int = 128, *, original_units: bool = True, refine: int = 0
    ) -> trimesh.Trimesh:
        """The surface of a row's field; in the units of the source file where the store has them.

        Args:
            refine: Steps of moving the vertices by the field's values and normals (`refine_mesh`).

        Raises:
            NoSurface: The field lies on one side everywhere.
        """
        number = self.row_number(row)
        lipschitz = "auto" if self.quantity == "sdf" else "crossings"
        mesh = extract_mesh(
            self.distance_of(number),
            resolution,
            box=self.box,
            lipschitz=lipschitz,
            chunk=2**11 if self.device.type == "cpu" else 2**17,
            device=self.device,
        )
        if refine:
            field = self.distance_of(number, bent=True)
            mesh = refine_mesh(mesh, field, steps=refine, device=self.device)
        if original_units:
            center, scale = self.normalization(number)
            mesh.vertices = mesh.vertices / scale + center
        return mesh

    @property
    def box(self) -> Box:
        """Where the fields of shapes are defined."""
        low, high = self.spec.coords.get("range", (-1.0, 1.0))
        return (float(low),) * 3, (float(high),) * 3

    def distance_of(
        self, row: int, *, bent: bool = False
    ) -> Callable[[Float[Tensor, "p 3"]], Float[Tensor, "p"]]:
        """A function that is negative inside and 0 on the surface of a row's field.

        `bent`: of fields of occupancy by its probability, even where there are logits.
        """
        bound, read = self.bound(row), self.method.field.read
        if self.quantity not in ("sdf", "occupancy") or self.dims != 3:
            raise ValueError(
                f"'{self.plan.name}' holds fields of '{self.quantity}' in {self.dims} axes: they "
                "bound no solid; a mesh needs 'sdf' or 'occupancy' in three"
            )
        level = level_of(self.spec.output)

        def distance(x: Float[Tensor, "p 3"]) -> Float[Tensor, "p"]:
            found = read(bound, x[None])
            if bent:
                found.pop("logits", None)
            return signed_values(found, level).reshape(-1)

        return distance

    def normalization(self, row: int | str) -> tuple[np.ndarray, float]:
        """Center and scale of a row: original = coords / scale + center; (0, 1) if not stored."""
        line = self.line(row)
        values = [line.get(name) for name in ("center_x", "center_y", "center_z", "scale")]
        if any(v is None or math.isnan(v) for v in values):
            return np.zeros(3), 1.0
        return np.array(values[:3]), values[3]


def longer_side(resolution: int | tuple[int, int] | None, default: int) -> int:
    """Of a resolution that may be given as height and width."""
    return max(resolution) if isinstance(resolution, tuple) else resolution or default
