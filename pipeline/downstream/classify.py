"""Small classifiers of vectors, and retrieval: ridge regression, of kernels too, nearest neighbors,
networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.course import ALONE, Course
from pipeline.downstream.latents import nearest
from pipeline.draw import Draw

Scores = Callable[[Float[Tensor, "m *shape"]], Float[Tensor, "m k"]]
"""A trained classifier: the greatest score is its answer."""
PENALTIES = tuple(10.0**e for e in range(-6, 4))
"""Ridge penalties that are tried, as shares of the mean eigenvalue."""
CENTERS = 1000
"""Most kernels of `kernel_ridge`."""
SMOOTHING = 0.05
"""Label smoothing of networks."""


def moments(known: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and deviation of each entry; those that hardly vary get a hundredth of the whole's
    deviation, so that dividing by it does not raise noise."""
    mean = known.mean(0)
    deviation = (known - mean).square().mean(0).sqrt()
    floor = 0.01 * deviation.square().mean().sqrt() + 1e-12
    return mean, deviation.clamp(min=floor)


def standardizer(
    known: Float[Tensor, "n d"],
) -> Callable[[Float[Tensor, "m d"]], Float[Tensor, "m d"]]:
    """Zero mean and unit deviation of each entry of the rows learned from."""
    mean, deviation = moments(known)
    return lambda x: (x - mean) / deviation


def ridge(known: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: int) -> Scores:
    """Ridge regression to the classes; its penalty is the best of `PENALTIES` when each row is left
    out in turn (in closed form)."""
    x = known.double()
    mean = x.mean(0)
    x = x - mean
    wanted = F.one_hot(labels, classes).double()
    wanted = wanted - wanted.mean(0)
    if len(x) <= x.shape[1]:
        values, u = torch.linalg.eigh(x @ x.T)
    else:
        values, v = torch.linalg.eigh(x.T @ x)
        u = x @ v / values.clamp(min=1e-30).sqrt()
    real = values > values.max() * 1e-12
    values, u = values[real], u[:, real]
    inside = u.T @ wanted
    best: tuple[float, float, float] | None = None
    for share in PENALTIES:
        penalty = float(share * values.mean())
        kept = values / (values + penalty)
        fitted = u @ (kept[:, None] * inside)
        own = (u.square() @ kept + 1 / len(x)).clamp(max=1 - 1e-9)
        left_out = wanted - (wanted - fitted) / (1 - own)[:, None]
        right = float((left_out.argmax(1) == labels).double().mean())
        found = (right, -float((wanted - left_out).square().mean()), penalty)
        best = found if best is None or found > best else best
    assert best is not None
    weight = x.T @ (u @ (inside / (values + best[2])[:, None]))
    prior = F.one_hot(labels, classes).double().mean(0)
    return lambda rows: ((rows.double() - mean) @ weight + prior).float()


def neighbors(
    known: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: int, count: int
) -> Scores:
    """Votes of the `count` nearest rows; the nearer decides between equals."""

    def scores(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m k"]:
        _, places = nearest(rows, known, min(count, len(known)))
        votes = F.one_hot(labels[places], classes).float()
        nearer = 1 - 1e-3 * torch.arange(places.shape[1]) / places.shape[1]
        return (votes * nearer[:, None]).sum(1)

    return scores


def kernel_ridge(
    known: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: int, seed: int = 0
) -> Scores:
    """Ridge regression on Gaussian kernels about at most `CENTERS` rows, as wide as the median
    distance between them."""
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    centers = known[order[:CENTERS]]
    width = torch.pdist(centers).median().clamp(min=1e-12)

    def kernels(rows: Float[Tensor, "m d"]) -> Float[Tensor, "m c"]:
        return (-0.5 * (torch.cdist(rows, centers) / width).square()).exp()

    scores = ridge(kernels(known), labels, classes)
    return lambda rows: scores(kernels(rows))


def perceptron(inputs: int, width: int, outputs: int, *, dropout: float = 0.2) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Dropout(dropout),
        nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout),
        nn.Linear(width, outputs),
    )  # fmt: skip


class PointNetwork(nn.Module):
    """Layers on each point, the maximum over points, layers on that (PointNet, Qi et al. 2017);
    layer normalization, with which few hundred shapes suffice."""

    def __init__(self, classes: int, width: int = 64):
        super().__init__()
        self.each = nn.Sequential(
            nn.Linear(3, width), nn.LayerNorm(width), nn.ReLU(),
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.ReLU(),
            nn.Linear(2 * width, 4 * width), nn.LayerNorm(4 * width),
        )  # fmt: skip
        self.whole = nn.Sequential(
            nn.Linear(4 * width, 2 * width), nn.LayerNorm(2 * width), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(2 * width, classes),
        )  # fmt: skip

    def forward(self, points: Float[Tensor, "n p 3"]) -> Float[Tensor, "n k"]:
        return self.whole(self.each(points).amax(1))


def train_network(
    make: Callable[[], nn.Module],
    known: Float[Tensor, "n *shape"],
    labels: Int[Tensor, "n"],
    *,
    name: str = "network",
    course: Course = ALONE,
    change: Callable[[Tensor, Draw], Tensor] = lambda x, draw: x,
    seed: int = 0,
    **learning: float,
) -> Scores:
    """A network trained to the classes.

    Args:
        name: Tells the trainings of a job apart (`Course.learn`).
        change: Augments a batch; what is random in it comes from the draw.
        learning: steps, batch, rate and weight_decay.
    """
    device = course.device
    known, labels = known.to(device), labels.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().to(device)

        def loss(index: Int[Tensor, "b"], draw: Draw) -> Float[Tensor, ""]:
            scores = model(change(known[index], draw))
            return F.cross_entropy(scores, labels[index], label_smoothing=SMOOTHING)

        course.learn(model, loss, len(known), name=name, seed=seed, **learning)

    @torch.no_grad()
    def scores(rows: Float[Tensor, "m *shape"]) -> Float[Tensor, "m k"]:
        return torch.cat([model(part.to(device)).cpu() for part in rows.split(512)])

    return scores


def accuracy(scores: Float[Tensor, "m k"], labels: Int[Tensor, "m"]) -> float:
    return float((scores.argmax(1) == labels).double().mean())


def mean_average_precision(
    rows: Float[Tensor, "m d"],
    labels: Int[Tensor, "m"],
    gallery: Float[Tensor, "n d"],
    gallery_labels: Int[Tensor, "n"],
    count: int,
) -> float:
    """mAP@k: each row retrieves its `count` nearest of the gallery; of those of its class the
    precision up to their place is summed, and divided by how many there could have been."""
    count = min(count, len(gallery))
    _, places = nearest(rows, gallery, count)
    right = (gallery_labels[places] == labels[:, None]).double()
    precision = right.cumsum(1) / torch.arange(1, count + 1)
    possible = (gallery_labels[None] == labels[:, None]).sum(1).clamp(max=count)
    return float(((precision * right).sum(1) / possible.clamp(min=1)).mean())


def recall(
    rows: Float[Tensor, "m d"],
    labels: Int[Tensor, "m"],
    gallery: Float[Tensor, "n d"],
    gallery_labels: Int[Tensor, "n"],
    count: int,
) -> float:
    """recall@k as retrieval counts it: the share of rows with one of their class among the `count`
    nearest of the gallery."""
    _, places = nearest(rows, gallery, min(count, len(gallery)))
    return float((gallery_labels[places] == labels[:, None]).any(1).double().mean())
