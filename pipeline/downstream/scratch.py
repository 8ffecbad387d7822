"""Segmentation by networks that see whole samples: a U-Net of pictures, a PointNet of points.

On pictures and coordinates they are what a few labeled samples give to someone who has no store;
the same PointNet also learns from the features of fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.classify import moments
from pipeline.downstream.course import Course
from pipeline.downstream.part_labels import Labeled
from pipeline.draw import Draw
from pipeline.encoders.unet import UNet
from schemas.probing import Steps

SAMPLES = 10
"""Samples a step."""
POINTS = 256
"""Points of a sample that a step of `PointSegmenter` sees, others in each."""


def class_weights(classes: Int[Tensor, "p"], count: int) -> Float[Tensor, "k"]:
    """Rare classes weigh more: one over the root of their number; 1 on the mean of the points."""
    weight = 1 / torch.bincount(classes, minlength=count).clamp(min=1).float().sqrt()
    return weight / weight[classes].mean()


def weighted(
    scores: Float[Tensor, "p k"], classes: Int[Tensor, "p"], weight: Float[Tensor, "k"]
) -> Float[Tensor, ""]:
    """Cross-entropy whose value does not depend on what else is in a batch."""
    return (F.cross_entropy(scores, classes, reduction="none") * weight[classes]).mean()


class PointSegmenter(nn.Module):
    """Layers on each point, the maximum over all of them, layers on both together (the segmenter of
    PointNet, Qi et al. 2017, without its alignment networks)."""

    def __init__(self, classes: int, inputs: int = 3, width: int = 64):
        super().__init__()
        self.each = nn.Sequential(
            nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU(),
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

    def forward(self, points: Float[Tensor, "n p f"]) -> Float[Tensor, "n p k"]:
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


def point_scores(
    inputs: Sequence[Float[Tensor, "p f"]],
    classes: Sequence[Int[Tensor, "p"]],
    weight: Float[Tensor, "k"],
    learning: Steps,
    seed: int,
    course: Course,
    name: str,
) -> Callable[[Float[Tensor, "m f"]], Float[Tensor, "m k"]]:
    """A `PointSegmenter` that learned the points of labeled samples; scores the points of one."""
    mean, scale = moments(torch.cat(list(inputs)))
    seen = _full([(x - mean) / scale for x in inputs]).to(course.device)
    wanted = _full(classes).to(course.device)

    def read(model: nn.Module, index: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        at = index[:, None], draw.integers("points", seen.shape[1], POINTS)
        return model(seen[at]), wanted[at]

    model = _learned(
        lambda: PointSegmenter(len(weight), seen.shape[2]), read, len(seen), weight, learning, seed,
        course, name,
    )  # fmt: skip
    return lambda x: model(((x - mean) / scale)[None])[0]


def segmented_pictures(
    known: Sequence[Labeled],
    known_pictures: Float[Tensor, "n c h w"],
    tests: Sequence[Labeled],
    test_pictures: Float[Tensor, "m c h w"],
    weight: Float[Tensor, "k"],
    learning: Steps,
    seed: int,
    course: Course,
    name: str,
) -> list[Int[Tensor, "p"]]:
    """Classes of the pixels of test samples, from a `PictureSegmenter` that learned the known."""
    coords = _full([s.coords for s in known]).to(course.device)
    wanted = _full([s.classes for s in known]).to(course.device)
    seen = known_pictures.to(course.device)

    def read(model: nn.Module, index: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        return model(seen[index], coords[index]), wanted[index]

    model = _learned(
        lambda: PictureSegmenter(seen.shape[1], len(weight)), read, len(known), weight, learning,
        seed, course, name,
    )  # fmt: skip
    return [
        model(picture[None], s.coords[None])[0].argmax(1)
        for s, picture in zip(tests, test_pictures)
    ]


def _full(samples: Sequence[Tensor]) -> Tensor:
    """Samples with equally many points: those of smaller ones are repeated."""
    most = max(len(s) for s in samples)
    return torch.stack([s[torch.arange(most) % len(s)] for s in samples])


def _learned(
    make: Callable[[], nn.Module],
    read: Callable[[nn.Module, Tensor, Draw], tuple[Tensor, Tensor]],
    samples: int,
    weight: Float[Tensor, "k"],
    learning: Steps,
    seed: int,
    course: Course,
    name: str,
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
        course.learn(model, loss, samples, name=name, seed=seed, **keys)
    return model.requires_grad_(False).cpu()
