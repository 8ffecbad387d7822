"""The latent GAN on circles in three clusters: better than a normal distribution, not collapsed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.downstream.adversarial import LatentGan
from pipeline.downstream.latents import distances
from pipeline.downstream.lesson import open_lesson
from pipeline.downstream.prior import draw_rows, load_prior, train_prior
from pipeline.downstream.set_metrics import coverage_of_nearest, fidelity, spread_ratio
from pipeline.draw import Draw, sample_keys
from schemas.base import Location
from schemas.downstream import GanJob
from tests.downstream.small import code_store, rings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan")
    code_store(Location(url=str(folder / "rings.zarr")), *rings(2000, 0), held_out=0.0)
    job = GanJob.model_validate(
        {
            "name": "gan",
            "source": {"url": str(folder / "rings.zarr")},
            "store": str(folder / "gan.zarr"),
            "method": {"width": 128, "conditional": False, "normalize": "none"},
            "train": {
                "steps": 1000, "batch": 64, "rate": 1e-3, "schedule": "cosine", "warmup": 1,
                "clip": None, "ema": 0.99, "previews": 0,
            },
        }
    )  # fmt: skip
    lesson = open_lesson(job)
    train_prior(lesson)
    return lesson, load_prior(lesson)


def test_samples_are_near_real_ones_spread_as_they_are_and_cover_them(trained):
    lesson, prior = trained
    real = torch.from_numpy(rings(1000, 7)[0])
    made = draw_rows(prior, lesson, 0, 1000)[0]
    values = lesson.values.numpy()
    random = np.random.default_rng(0)
    normal = random.multivariate_normal(values.mean(0), np.cov(values.T), 1000).astype(np.float32)
    near = {name: fidelity(distances(x, real)) for name, x in
            (("gan", made), ("normal", torch.from_numpy(normal)))}  # fmt: skip
    covered = coverage_of_nearest(distances(made, real))
    spread = spread_ratio(made, real)
    shown = f"{near}, coverage {covered:.2f}, spread {spread:.3f}"
    assert near["gan"] <= 0.7 * near["normal"], shown
    assert covered >= 0.4, shown
    assert abs(spread - 1) <= 0.1, shown


def test_the_critic_has_the_slope_that_is_asked_of_it(trained):
    lesson, prior = trained
    assert isinstance(prior, LatentGan)
    draw = Draw.of(sample_keys([str(i) for i in range(500)]), seed=1, stage="test")
    labels = torch.full((500,), -1)
    slope = prior.slopes(lesson.values[:500], draw, labels)
    assert 0.7 < float(slope.mean()) < 1.3
