"""Starts learned on other pictures for the engine's workload: what they save, and what they cost.

    python -m benchmarks.engine_starts [--depth 2] [--held-out]

Hidden layers are learned so that the best output layer leaves little error on crops of other
pictures (none of the five of `engine_crops`). `siren` begins from them with `start: common` and
`readout: solved`, and runs the compiled loop as a run does. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
from jaxtyping import Float  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.engine import COUNT, prepared  # noqa: E402
from benchmarks.engine_crops import PICTURES, SIDE, crops, pixel_coords  # noqa: E402
from pipeline import methods  # noqa: E402
from pipeline.fields.bind import START, Tensors, bind  # noqa: E402
from pipeline.fitting import fit_rows, start_shared  # noqa: E402
from pipeline.fitting.method import PerSample  # noqa: E402
from pipeline.fitting.readout import hidden_features, inverse_products  # noqa: E402
from pipeline.samples import load_samples  # noqa: E402
from schemas.store import RowStatus  # noqa: E402

OTHERS = ("camera", "brick", "grass", "gravel", "coins", "moon", "hubble_deep_field")
# Not "cat", which is "chelsea" by another name.
OTHERS += ("colorwheel", "page", "text", "retina", "microaneurysms", "cell")
FINER = 2.0
"""The first layer's weights begin so many times larger: solved for, slow waves alone would fit most
crops, but what is left is then fast, and slow waves learn it slowly."""


def other_crops(count: int, seed: int = 7) -> Float[Tensor, "n 1024 3"]:
    """Crops as `crops` makes them, of other pictures; grey ones in three equal channels."""
    from skimage import data

    assert not set(OTHERS) & set(PICTURES)
    pictures = [getattr(data, name)() for name in OTHERS]
    pictures = [np.repeat(p[..., None], 3, -1) if p.ndim == 2 else p[..., :3] for p in pictures]
    random = np.random.default_rng(seed)
    cut = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        y, x = (int(random.integers(0, n - SIDE)) for n in picture.shape[:2])
        cut.append(picture[y : y + SIDE, x : x + SIDE].reshape(-1, 3))
    return torch.from_numpy(np.stack(cut).astype(np.float32) / 127.5 - 1)


def learned_start(
    method: PerSample, images: Float[Tensor, "n p c"], *, steps: int, finer: float, seed: int = 0
) -> Tensors:
    """Common rows whose hidden layers leave little of these images after the best output layer.

    Few steps are best: hidden layers learned further begin nearer to easy crops and get stuck on
    the others.
    """
    random = torch.Generator().manual_seed(seed)
    shared = start_shared(method, seed)
    shared[START + "layers.0.weight"] = shared[START + "layers.0.weight"] * finer
    last = f"{START}layers.{len(method.model.table) - 1}."
    rows = {n.removeprefix(START): v for n, v in shared.items() if not n.startswith(last)}
    rows = {name: value[None].requires_grad_() for name, value in rows.items()}
    bound = bind(method.model, {n.removeprefix(START): v for n, v in shared.items()})
    coords, ridge = torch.from_numpy(pixel_coords())[None], method.fit[0].enter.ridge
    optimizer = torch.optim.Adam(rows.values(), 2e-3, betas=(0.8, 0.999))
    for _ in range(steps):
        some = images[torch.randint(len(images), (128,), generator=random)]
        wanted = some.permute(1, 0, 2).flatten(1)[None]
        features = hidden_features(bound, rows, coords)
        features = torch.cat([features, torch.ones_like(features[..., :1])], 2)
        weighed = features.mT / features.shape[1]
        solved = inverse_products(weighed, features, ridge) @ (weighed @ wanted)
        left = (features @ solved - wanted)[0].square().mean(0).unflatten(0, (-1, 3)).mean(1)
        optimizer.zero_grad()
        (left + 1e-4).log().mean().backward()
        optimizer.step()
    return {**shared, **{START + name: value[0].detach() for name, value in rows.items()}}


def measured(table: pa.Table, shared_of, **settings) -> dict:
    """Fits the crops of a table to 30 dB; images a CPU second, steps, and PSNR."""
    samples = load_samples(table, "images")
    size = {"width": 64, "schedule": "constant", "steps": 600}
    method = methods.build(
        "siren", methods.configure("siren", "default", {**size, **settings}), samples.form
    )
    shared, learning = shared_of(method)
    took = []
    for _ in range(4):
        began = time.process_time()
        ends = fit_rows(method, shared, samples, seed=0, fused=True)
        took.append(time.process_time() - began)
    found = {
        "images_per_cpu_second": round(len(samples) / statistics.median(took[1:]), 1),
        "mean_steps": round(float(ends.steps.float().mean()), 2),
        "most_steps": int(ends.steps.max()),
        "met": sum(status == RowStatus.OK for status in ends.status),
        "learning_cpu_seconds": round(learning, 2),
    }
    masks = np.stack([np.unpackbits(np.frombuffer(b.as_py(), np.uint8)) for b in table["held_out"]])
    if masks.any():
        coords = torch.from_numpy(pixel_coords()).expand(len(samples), -1, -1)
        with torch.no_grad():
            color = method.read(bind(method.model, ends.rows), coords)["color"]
        pixels = [np.frombuffer(b.as_py(), np.uint8).reshape(-1, 3) for b in table["pixels"]]
        error = (color - torch.from_numpy(np.stack(pixels) / 255.0)).square().mean(-1).numpy()
        held = np.array([e[m > 0].mean() for e, m in zip(error, masks)])
        found["held_out_psnr"] = round(float(-10 * np.log10(held).mean()), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=2, help="sine layers")
    parser.add_argument("--held-out", action="store_true", help="a tenth of the pixels is not seen")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = prepared(crops(COUNT))
    if args.held_out:
        random = np.random.default_rng(3)
        masks = [np.packbits(random.random(SIDE * SIDE) < 0.1).tobytes() for _ in range(COUNT)]
        at = table.schema.get_field_index("held_out")
        table = table.set_column(at, table.schema.field(at), pa.array(masks, pa.binary()))
    others = other_crops(512)

    def none(method):
        return start_shared(method, 0), 0.0

    def learned(steps, finer):
        def learn(method):
            began = time.process_time()
            shared = learned_start(method, others, steps=steps, finer=finer)
            return shared, time.process_time() - began

        return learn

    solved, common = {"readout": "solved"}, {"readout": "solved", "start": "common"}
    usual, slow = {"rate": 2e-3, "momentum": 0.8}, {"rate": 1e-3, "momentum": 0.7}
    cases = {
        "equal to the baselines (decay 0.9)": (none, {"rate": 2e-3, "momentum": 0.9}),
        "defaults": (none, usual),
        "own starts, first frequency 60": (none, {**usual, "omega_first": 60.0}),
        "own starts, output layer solved": (none, {**usual, **solved}),
        "... at rate 1e-3, decay 0.7": (none, {**slow, **solved}),
        "... first frequency 60": (none, {**usual, **solved, "omega_first": 60.0}),
        "learned start, 20 steps": (learned(20, 1.0), {**slow, **common}),
        "learned start, 20 steps, finer": (learned(20, FINER), {**slow, **common}),
        "... defaults": (learned(20, FINER), {**usual, **common}),
        "learned start, 100 steps, finer": (learned(100, FINER), {**slow, **common}),
    }
    found = {}
    for name, (shared_of, settings) in cases.items():
        found[name] = measured(table, shared_of, depth=args.depth, **settings)
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
