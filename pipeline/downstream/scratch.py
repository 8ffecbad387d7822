"""Segmentation without fields: networks that see whole samples, from labels alone.

They are what a few labeled samples give to someone who has no store: a U-Net of pictures, a
PointNet of surface points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.course import Course
from pipeline.downstream.part_labels import Labeled
from pipeline.downstream.readings import weighted
from pipeline.draw import Draw
from pipeline.encoders.unet import UNet
from schemas.probing import Steps

SAMPLES = 10
"""Samples a step."""
POINTS = 256
"""Points of a sample that a step of `PointSegmenter` sees, others in each."""


class PointSegmenter(nn.Module):
    """Layers on each point, the maximum over all of them, layers on both together (the segmenter of
    PointNet, Qi et al. 2017, without its alignment networks)."""

    def __init__(self, classes: int, width: int = 64):
        super().__init__()
        self.each = nn.Sequential(
            nn.Linear(3, width), nn.LayerNorm(width), nn.ReLU(),
            nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(),
        )  # fmt: skip
        self.whole = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.ReLU(),
            nn.Linear(2 * width, 4 * width), nn.LayerNorm(4 * width),
        )  # fmt: skip
        self.both = nn.Sequential(
            nn.Linear(5 * width, 2 * width), nn.LayerNorm(2 * width), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, classes),
        )  # fmt: skip

    def forward(self, points: Float[Tensor, "n p 3"]) -> Float[Tensor, "n p k"]:
        own = self.each(points)
        whole = self.whole(own).amax(1, keepdim=True)
        return self.both(torch.cat([own, whole.expand(-1, own.shape[1], -1)], -1))


class PictureSegmenter(nn.Module):
    """A U-Net of three levels (30,000 weights), read at coordinates."""

    def __init__(self, channels: int, classes: int, width: int = 8):
        super().__init__()
        self.net = UNet(2, channels, classes, width=width, levels=3)

    def forward(
        self, pictures: Float[Tensor, "n c h w"], coords: Float[Tensor, "n p 2"]
    ) -> Float[Tensor, "n p k"]:
        height, width = pictures.shape[-2:]
        below, beside = -height % self.net.step, -width % self.net.step
        padded = F.pad(pictures * 2 - 1, (0, beside, 0, below), mode="replicate")
        found = self.net(padded)[..., :height, :width]
        read = F.grid_sample(found, coords[:, :, None], padding_mode="border", align_corners=False)
        return read[..., 0].transpose(1, 2)


def segmented_points(
    known: Sequence[Labeled],
    tests: Sequence[Labeled],
    weight: Float[Tensor, "k"],
    learning: Steps,
    seed: int,
    course: Course,
) -> list[Int[Tensor, "p"]]:
    """Classes of the points of test samples, from a `PointSegmenter` that learned the known."""
    coords, wanted = _full(known, course.device)

    def read(model: nn.Module, index: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        at = index[:, None], draw.integers("points", coords.shape[1], POINTS)
        return model(coords[at]), wanted[at]

    model = _learned(lambda: PointSegmenter(len(weight)), read, len(known), weight, learning, seed,
                     course)  # fmt: skip
    return [model(s.coords[None])[0].argmax(1) for s in tests]


def segmented_pictures(
    known: Sequence[Labeled],
    known_pictures: Float[Tensor, "n c h w"],
    tests: Sequence[Labeled],
    test_pictures: Float[Tensor, "m c h w"],
    weight: Float[Tensor, "k"],
    learning: Steps,
    seed: int,
    course: Course,
) -> list[Int[Tensor, "p"]]:
    """Classes of the pixels of test samples, from a `PictureSegmenter` that learned the known."""
    coords, wanted = _full(known, course.device)
    seen = known_pictures.to(course.device)

    def read(model: nn.Module, index: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        return model(seen[index], coords[index]), wanted[index]

    model = _learned(lambda: PictureSegmenter(seen.shape[1], len(weight)), read, len(known), weight,
                     learning, seed, course)  # fmt: skip
    return [
        model(picture[None], s.coords[None])[0].argmax(1)
        for s, picture in zip(tests, test_pictures)
    ]


def _full(samples: Sequence[Labeled], device: str) -> tuple[Tensor, Tensor]:
    """Samples with equally many points: those of smaller ones are repeated."""
    most = max(len(s.classes) for s in samples)
    places = [torch.arange(most) % len(s.classes) for s in samples]
    coords = torch.stack([s.coords[at] for s, at in zip(samples, places)])
    classes = torch.stack([s.classes[at] for s, at in zip(samples, places)])
    return coords.to(device), classes.to(device)


def _learned(
    make: Callable[[], nn.Module],
    read: Callable[[nn.Module, Tensor, Draw], tuple[Tensor, Tensor]],
    samples: int,
    weight: Float[Tensor, "k"],
    learning: Steps,
    seed: int,
    course: Course,
) -> nn.Module:
    """A network trained on what `read` gives of samples by number: scores and classes."""
    weight = weight.to(course.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(course.device)

        def loss(index: Int[Tensor, "b"], draw: Draw) -> Float[Tensor, ""]:
            scores, wanted = read(model, index, draw)
            return weighted(scores.flatten(0, 1), wanted.flatten(), weight)

        keys = {**learning.descent(), "batch": SAMPLES}
        course.learn(model, loss, samples, name="whole samples", seed=seed, **keys)
    return model.requires_grad_(False).cpu()
