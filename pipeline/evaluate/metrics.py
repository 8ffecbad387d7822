"""Metrics of pixels and points, on what was held out of fitting; cheap enough for every row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from skimage.metrics import structural_similarity
from torch import Tensor

from pipeline.evaluate.grid_metrics import (
    SOUND_METRICS,
    VIDEO_METRICS,
    measure_sound,
    measure_video,
)
from pipeline.evaluate.inside import level_of, signed_values
from pipeline.evaluate.mesh_metrics import mesh_metric_columns as mesh_metric_columns
from pipeline.evaluate.mesh_metrics import mesh_metrics as mesh_metrics
from pipeline.evaluate.prepared_lines import (
    Line,
    decode_picture,
    decode_points,
    decode_source,
    held_out_pixels,
    line_of,
)
from pipeline.evaluate.wave_metrics import WAVE_METRICS, measure_wave
from pipeline.fields.bind import bind
from pipeline.fitting.method import Method
from pipeline.fitting.rows import bindable
from pipeline.samples import Samples, pixel_coords
from schemas.store import ColumnSpec

Quantities = dict[str, Tensor]
"""What a field says of points, `[p]` or `[p, c]`: `color` in [0, 1], `sdf`, `occupancy`, ..."""
RowReader = Callable[[int, Float[Tensor, "p d"]], Quantities]
"""Evaluates one row at coordinates."""
PointReader = Callable[[Float[Tensor, "p d"]], Quantities]

SOURCE_PIXELS = 2**18
"""Most pixels of a full-resolution source that are compared."""
SSIM_WINDOW = 11
"""Pixels; Gaussian weights with sigma 1.5 (Wang et al. 2004)."""


def _column(name: str, description: str) -> ColumnSpec:
    return ColumnSpec(name=name, dtype="float32", description=description)


IMAGE_METRICS = (
    _column("psnr", "PSNR of held-out pixels in dB, values in [0, 1], clipped; NaN if none is"),
    _column("psnr_fit", "PSNR of the pixels that were fitted in dB, values in [0, 1], clipped"),
    _column(
        "ssim",
        "SSIM (11 px Gaussian window, sigma 1.5, mean over channels) of the whole reconstructed "
        "picture with the whole picture, averaged over windows centred on held-out pixels only; "
        "NaN for pictures of less than 11 pixels a side or without held-out pixels",
    ),
    _column(
        "psnr_source",
        "PSNR in dB against the full-resolution source (at most 262,144 evenly spaced pixels); "
        "NaN when the fit used the source itself",
    ),
)
SHAPE_METRICS = (
    _column("iou_uniform", "IoU of the insides on held-out points uniform in the box [-1, 1]^3"),
    _column("iou_near", "IoU of the insides on held-out points near the surface"),
    _column(
        "distance_error_near",
        "mean |error| of the signed distance at held-out near-surface points, in normalised units "
        "(of its magnitude where the data has no sign); NaN for fields without distance",
    ),
)
POINT_METRICS = (
    _column(
        "distance_surface",
        "mean |distance| of the field at held-out points of the cloud, in normalised units",
    ),
    _column(
        "distance_error_near",
        "mean | |distance| of the field - distance to the cloud | at held-out near-surface points, "
        "in normalised units; NaN where none are prepared (`ingest.near`)",
    ),
    _column(
        "normal_cosine",
        "mean cosine between the field's gradient and the normals at held-out points of the cloud "
        "(at most 1,024, central differences); below 0: turned inside out; NaN without normals",
    ),
    _column(
        "gradient_error",
        "mean | |gradient of the field| - 1 | at the same points, 0 for a distance",
    ),
)
GRADIENT_POINTS, GRADIENT_STEP = 1024, 1e-3
CHEAP = {
    "images": IMAGE_METRICS,
    "audio": SOUND_METRICS,
    "video": VIDEO_METRICS,
    "shapes": SHAPE_METRICS,
    "points": POINT_METRICS,
    "equations": WAVE_METRICS,
}


def cheap_metrics(kind: str) -> tuple[ColumnSpec, ...]:
    """Columns that `measure` fills for every row of this kind of sample."""
    if kind not in CHEAP:
        raise ValueError(f"no metrics for samples of kind '{kind}'; known: {', '.join(CHEAP)}")
    return CHEAP[kind]


# --- single quantities ----------------------------------------------------------------------


def psnr(prediction: np.ndarray, target: np.ndarray) -> float:
    """PSNR in dB of values in [0, 1], the prediction clipped; NaN of nothing, inf if equal."""
    if target.size == 0:
        return float("nan")
    error = np.clip(prediction, 0, 1).astype(np.float64) - target
    mean = float((error**2).mean())
    return float("inf") if mean == 0 else -10 * float(np.log10(mean))


def ssim_at(
    prediction: Float[np.ndarray, "h w c"], target: Float[np.ndarray, "h w c"], where: np.ndarray
) -> float:
    """SSIM map of two pictures in [0, 1], averaged over the pixels `where` [h, w] is true.

    SSIM compares windows, so it is not defined on scattered pixels: a window centred on a held-out
    pixel contains fitted ones.
    """
    if min(target.shape[:2]) < SSIM_WINDOW or not where.any() or not np.isfinite(prediction).all():
        return float("nan")
    _, full = structural_similarity(
        np.clip(prediction, 0, 1).astype(np.float64),
        target.astype(np.float64),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
        full=True,
    )
    return float(full.mean(-1)[where].mean())


def iou(predicted_inside: np.ndarray, inside: np.ndarray) -> float:
    """Intersection over union of two sets of points; NaN when both are empty."""
    union = int((predicted_inside | inside).sum())
    return int((predicted_inside & inside).sum()) / union if union else float("nan")


def inside_of(quantities: Quantities, level: float = 0.5) -> np.ndarray:
    """Which points a field puts inside: sdf < 0, or occupancy > level (a probability)."""
    return (signed_values(quantities, level) < 0).cpu().numpy()


# --- cheap metrics of many rows -------------------------------------------------------------


def measure(
    kind: str,
    method: Method,
    shared: Quantities,
    rows: Quantities,
    samples: Samples,
    table: pa.Table,
) -> dict[str, np.ndarray]:
    """Cheap metrics of fitted rows; `rows` hold, by name, what each sample of `table` owns.

    `samples` are the same rows as loaded for fitting; they tell the device.
    """
    device, field = samples.device, method.field
    field.model.eval()  # a model fresh from `build` would take statistics of these points
    shared = {name: value.to(device) for name, value in shared.items()}

    def read(row: int, coords: Tensor) -> Quantities:
        own = {name: value[row : row + 1].to(device) for name, value in rows.items()}
        bound = bind(field.model, bindable(method, shared, own))
        return {k: v[0] for k, v in field.read(bound, coords[None].to(device)).items()}

    return measure_table(
        kind,
        read,
        table,
        chunk=2**13 if device.type == "cpu" else 2**18,
        level=level_of(field.output),
    )


def measure_table(
    kind: str, read: RowReader, table: pa.Table, *, chunk: int = 2**13, level: float = 0.5
) -> dict[str, np.ndarray]:
    """Cheap metrics of each line of a prepared table; `chunk` is the points in one `read`, `level`
    the occupancy at the surface.
    """
    measure_line = {
        "images": _measure_image,
        "audio": measure_sound,
        "video": measure_video,
        "shapes": _measure_shape,
        "points": _measure_cloud,
        "equations": measure_wave,
    }
    columns = cheap_metrics(kind)
    values = {c.name: np.full(table.num_rows, np.nan, np.float32) for c in columns}
    with torch.no_grad():
        for row in range(table.num_rows):
            line = line_of(table, row)

            def ask(coords: Tensor, row: int = row) -> Quantities:
                parts = [read(row, part) for part in coords.split(chunk)]
                return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

            asked = (ask, line, level) if kind == "shapes" else (ask, line)
            for name, value in measure_line[kind](*asked).items():
                values[name][row] = value
    return values


def _measure_image(ask: PointReader, line: Line) -> dict[str, float]:
    picture, held_out = decode_picture(line), held_out_pixels(line)
    height, width, channels = picture.shape
    color = _color(ask, pixel_coords(height, width)).reshape(height, width, channels)
    found = {
        "psnr": psnr(color[held_out], picture[held_out]),
        "psnr_fit": psnr(color[~held_out], picture[~held_out]),
        "ssim": ssim_at(color, picture, held_out),
    }
    source = decode_source(line)
    if source is not None:
        height, width, channels = source.shape
        step = int(np.ceil(np.sqrt(height * width / SOURCE_PIXELS)))
        offset = step // 2 if min(height, width) > step else 0
        coords = pixel_coords(height, width).reshape(height, width, 2)
        coords = coords[offset::step, offset::step]
        color = _color(ask, coords.reshape(-1, 2))
        found["psnr_source"] = psnr(color, source[offset::step, offset::step].reshape(-1, channels))
    return found


def _color(ask: PointReader, coords: Tensor) -> np.ndarray:
    quantities = ask(coords)
    if "color" not in quantities:
        raise ValueError(f"the field gives {sorted(quantities)}; pictures need 'color'")
    return quantities["color"].float().cpu().numpy()


def _measure_shape(ask: PointReader, line: Line, level: float) -> dict[str, float]:
    found = {}
    for name in ("uniform", "near"):
        coords, distance = decode_points(line, f"held_{name}")
        if not len(coords):
            continue
        quantities = ask(torch.from_numpy(coords))
        signed = f"held_{name}_distance" in line
        if signed:
            inside = inside_of(quantities, level).reshape(-1)
            found[f"iou_{name}"] = iou(inside, np.signbit(distance))
        if name == "near" and "sdf" in quantities:
            sdf = quantities["sdf"].float().cpu().numpy().reshape(-1)
            error = (sdf if signed else np.abs(sdf)) - distance
            found["distance_error_near"] = float(np.abs(error).mean())
    return found


def _measure_cloud(ask: PointReader, line: Line) -> dict[str, float]:
    coords, _ = decode_points(line, "held_surface")
    if not len(coords):
        return {}
    quantities = ask(torch.from_numpy(coords))
    if "sdf" not in quantities:
        return {}
    found = {"distance_surface": float(quantities["sdf"].float().abs().mean())}
    if "held_near_coords" in line:
        near, distance = decode_points(line, "held_near")
        if len(near):
            sdf = ask(torch.from_numpy(near))["sdf"].float().cpu().numpy().reshape(-1)
            found["distance_error_near"] = float(np.abs(np.abs(sdf) - distance).mean())
    slope = _gradient(ask, torch.from_numpy(coords[:GRADIENT_POINTS]))
    length = slope.norm(dim=-1)
    found["gradient_error"] = float((length - 1).abs().mean())
    normals = line.get("held_surface_normals")
    if normals is not None and normals.is_valid:
        stored = np.frombuffer(normals.as_buffer(), "<f2").astype(np.float32).reshape(-1, 3)
        normals = torch.from_numpy(stored[:GRADIENT_POINTS])
        cosine = (slope * normals).sum(-1) / length.clamp(min=1e-12)
        found["normal_cosine"] = float(cosine.mean())
    return found


def _gradient(ask: PointReader, coords: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
    """Gradient of the distance by central differences: `ask` has no graph."""
    steps = GRADIENT_STEP * torch.cat([torch.eye(3), -torch.eye(3)])
    around = (coords[:, None] + steps).reshape(-1, 3)
    values = ask(around)["sdf"].float().cpu().reshape(-1, 2, 3)
    return (values[:, 0] - values[:, 1]) / (2 * GRADIENT_STEP)
