"""LIIF: super-resolution of unseen photographs, at seen and unseen scales."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import skimage.data
from PIL import Image

from benchmarks.acceptance import Figures
from schemas.samples import GRID, IDENTITY

DATA = "96 cuts of 48 x 48 of four scikit-image photographs; new: 24 cuts of two other photographs"
METRIC = "PSNR of new photographs at 3 x 12 x 12 pixels, dB"
CONTROL = "training (bicubic interpolation, PIL)"
CLAIM = "DIV2K x3: 30.96 dB, bicubic 28.22 dB; beyond the trained scales x6: 26.75, 24.82 (table 1)"
KNOWN, NEW = ("astronaut", "coffee", "rocket", "retina"), ("chelsea", "immunohistochemistry")
SETTINGS = {
    "height": 12,
    "width": 12,
    "features": 12,
    "blocks": 3,
    "hidden": 48,
    "depth": 2,
    "points": 128,
    "train_steps": 550,
    "batch": 16,
    "rate": 4e-3,
}
SCALES = (2, 3, 4, 6)
TWINS = {"ours": {}, "nearest": {"ensemble": False, "train_steps": 60}}
"""The twin only has to show its seams."""


def run(seed: int) -> Figures:
    """PSNR of ours, of bicubic, and of a twin that asks beside the nearest feature alone."""
    from pipeline import methods
    from pipeline.fitting import train
    from pipeline.samples import load_samples

    samples = load_samples(cuts(KNOWN, 24, 48, seed), "images")
    pictures = new_pictures(seed)
    also = {}
    for name, keys in TWINS.items():
        config = methods.configure("liif", settings={**SETTINGS, **keys})
        method = methods.build("liif", config, samples.form)
        trained = train(method, samples, seed=seed)
        for scale in SCALES if name == "ours" else ():
            also[f"{name} x{scale}"] = enlarged(method, trained.shared, pictures, scale)
        also[f"{name}, jump"] = jump(method, trained.shared, pictures)
    for scale in SCALES:
        also[f"bicubic x{scale}"] = bicubic(pictures, scale)
    return Figures(also["ours x3"], also["bicubic x3"], also)


def check(figures: Figures) -> None:
    also = figures.also
    for scale in (2, 3, 4):
        gain = also[f"ours x{scale}"] - also[f"bicubic x{scale}"]
        assert gain >= 0.2, f"x{scale}: {gain:.2f} dB over bicubic"
    assert also["ours x6"] >= also["bicubic x6"], "beyond the trained scales"
    assert also["ours, jump"] <= also["nearest, jump"] / 3, "seams between cells"


def photo(name: str) -> np.ndarray:
    """An RGB photograph, halved."""
    picture = Image.fromarray(getattr(skimage.data, name)()[..., :3])
    half = (picture.width // 2, picture.height // 2)
    return np.asarray(picture.resize(half, Image.Resampling.BOX))


def places(name: str, count: int, size: int, seed: int) -> list[np.ndarray]:
    """Seeded square cuts of one photograph."""
    picture = photo(name)
    random = np.random.default_rng([seed, len(name)])
    found = []
    for _ in range(count):
        y, x = (int(random.integers(0, side - size + 1)) for side in picture.shape[:2])
        found.append(picture[y : y + size, x : x + size])
    return found


def cuts(names: tuple[str, ...], each: int, size: int, seed: int) -> pa.Table:
    """Prepared rows of cuts; nothing is held out of a picture, whole photographs are."""
    lines = []
    for name in names:
        for i, pixels in enumerate(places(name, each, size, seed)):
            lines.append(
                {
                    "row": len(lines),
                    "sample_id": f"{name}/{i:02d}.png",
                    "label": name,
                    "split": "train",
                    "pixels": np.ascontiguousarray(pixels).tobytes(),
                    "height": size,
                    "width": size,
                    "channels": 3,
                    "dtype": "uint8",
                    "held_out": np.packbits(np.zeros(size * size, bool)).tobytes(),
                }
            )
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *GRID]))


def new_pictures(seed: int) -> list[np.ndarray]:
    """Cuts of 72 x 72 of photographs that training has not seen."""
    return [cut for name in NEW for cut in places(name, 12, 72, seed + 1)]


def small_and_large(picture: np.ndarray, scale: int) -> tuple[Image.Image, np.ndarray]:
    """12 x 12 pixels, and what they were reduced from: the middle 12 scale pixels."""
    side = 12 * scale
    start = (72 - side) // 2
    large = picture[start : start + side, start : start + side]
    return Image.fromarray(large).resize((12, 12), Image.Resampling.BICUBIC), large


def bicubic(pictures: list[np.ndarray], scale: int) -> float:
    """PIL's interpolation."""
    values = []
    for picture in pictures:
        small, large = small_and_large(picture, scale)
        found = small.resize(large.shape[1::-1], Image.Resampling.BICUBIC)
        values.append(psnr(np.asarray(found) / 255, large / 255))
    return float(np.mean(values))


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(-10 * np.log10(((found - wanted) ** 2).mean()))


def bound_to(method, shared, pictures: list[np.ndarray], scale: int):
    """The model closed over the features of small pictures."""
    import torch

    from pipeline.fields.bind import bind
    from pipeline.fitting.rows import bindable

    small = [np.asarray(small_and_large(picture, scale)[0]) for picture in pictures]
    low = torch.from_numpy(np.stack(small)).float().permute(0, 3, 1, 2) / 127.5 - 1
    model = method.model.eval()
    rows = {"low.value": low, "feature.value": torch.zeros(len(low), *model.feature.value.shape)}
    bound = bind(model, bindable(method, shared, rows))
    with torch.no_grad():
        rows["feature.value"] = bound.encoder(low)
    return bind(model, bindable(method, shared, rows))


def enlarged(method, shared, pictures: list[np.ndarray], scale: int) -> float:
    """PSNR of ours at a scale, told the true size of a pixel."""
    import torch

    from pipeline.samples import pixel_coords

    side = 12 * scale
    bound = bound_to(method, shared, pictures, scale)
    with torch.no_grad():
        pixel = torch.tensor([[2 / side, 2 / side]])
        color = bound(pixel_coords(side, side)[None], pixel)
    found = (color * 0.5 + 0.5).clamp(0, 1).reshape(len(pictures), side, side, 3).numpy()
    large = [small_and_large(picture, scale)[1] / 255 for picture in pictures]
    return float(np.mean([psnr(a, b) for a, b in zip(found, large)]))


def jump(method, shared, pictures: list[np.ndarray]) -> float:
    """Mean change of the color across borders between places of the nearest feature."""
    import torch

    bound = bound_to(method, shared, pictures, 4)
    border = torch.arange(1, 12) / 6 - 1
    y = torch.linspace(-0.9, 0.9, 31)
    pixel = torch.tensor([[2 / 48, 2 / 48]])
    with torch.no_grad():
        sides = [
            bound(torch.cartesian_prod(border + step, y)[None], pixel) for step in (-1e-4, 1e-4)
        ]
    return float((sides[0] - sides[1]).abs().mean())
