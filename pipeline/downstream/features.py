"""Features in which sets of pictures are compared: principal components, or a classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.statistics import principal_components

Extractor = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n f"]]
WIDTH = 32
"""Channels of the classifier's first layer."""


def pca_features(pictures: Float[Tensor, "n c h w"], dimensions: int) -> Extractor:
    """Coordinates along the principal components of real pictures, the first one of unit variance.

    The scale matters to the kernel distance, whose kernel has a unit of its own.
    """
    kept = min(dimensions, len(pictures) - 1)
    found = principal_components(pictures)
    kept = min(kept, len(found.axes))
    scale = found.deviation[0].clamp(min=1e-12)

    def extract(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        return found.project(x)[:, :kept] / scale

    return extract


class Classifier(nn.Module):
    """Three convolutions and a mean over what is left, then a linear layer to the classes.

    Weights of one's own are a safetensors file of this state: `net.0`, `net.3`, `net.6` (3x3
    convolutions of 32, 64 and 128 channels) and `head`.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        made: list[nn.Module] = []
        for inputs, outputs in ((channels, WIDTH), (WIDTH, 2 * WIDTH), (2 * WIDTH, 4 * WIDTH)):
            made += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU(), nn.Identity()]
        self.net = nn.Sequential(*made)
        self.head = nn.Linear(4 * WIDTH, classes)

    def features(self, pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """What the last layer sees."""
        return self.net(pictures * 2 - 1).mean((2, 3))

    def forward(self, pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.head(self.features(pictures))


def train_classifier(
    pictures: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    classes: int,
    *,
    steps: int = 300,
    seed: int = 0,
) -> Classifier:
    """A classifier of real pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(pictures.shape[1], classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        for _ in range(steps):
            index = torch.randint(len(pictures), (min(64, len(pictures)),))
            loss = F.cross_entropy(model(pictures[index]), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def load_classifier(path: str) -> Classifier:
    """A classifier of one's own from a safetensors file; nothing in it is run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"evaluate.features: {path} is no file of safetensors that can be read ({error}); give "
            "pca, classifier, or the path of such a file"
        ) from error
    try:
        channels, classes = tensors["net.0.weight"].shape[1], tensors["head.weight"].shape[0]
        model = Classifier(channels, classes)
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        wanted = ", ".join(Classifier(3, 2).state_dict())
        raise ValueError(
            f"{path}: not the weights of the classifier of features, which are {wanted}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return model.eval()


def classifier_features(model: Classifier) -> Extractor:
    """The penultimate layer, divided by one number so that real features have a unit scale."""

    @torch.no_grad()
    def extract(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        return torch.cat([model.features(part) for part in x.split(256)])

    return extract


@torch.no_grad()
def class_measures(
    model: Classifier, made: Float[Tensor, "n c h w"], real: Float[Tensor, "m c h w"]
) -> dict[str, float]:
    """What a classifier sees in samples: `confidence`, the mean probability of its answer, and
    `class_shift`, the total variation between its answers' shares here and on real pictures."""

    def chances(x: Tensor) -> Tensor:
        return torch.cat([model(part) for part in x.split(256)]).softmax(1)

    def shares(chance: Tensor) -> Tensor:
        counts = torch.bincount(chance.argmax(1), minlength=chance.shape[1])
        return counts.double() / len(chance)

    found, expected = chances(made), chances(real)
    return {
        "confidence": float(found.amax(1).double().mean()),
        "class_shift": float((shares(found) - shares(expected)).abs().sum() / 2),
    }
