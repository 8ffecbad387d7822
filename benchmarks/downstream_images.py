"""Fashion-MNIST as latents and as weights: what they tell, and what a prior makes of them.

    python -m benchmarks.downstream_images --folder FASHION_MNIST --work FOLDER --write

FASHION_MNIST holds the data set's IDX files. Stores come from the main job (`fieldmill run`),
figures from `fieldmill probe` and `fieldmill prior`; all of it is kept below --work, so that a
second run goes on where the first ended. --write keeps the tables in
benchmarks/results/downstream_images.md and the pictures in docs/.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.downstream_jobs import (
    DOCS,
    PROBED,
    RESULTS,
    Bench,
    markdown,
    measured_rows,
    probe_rows,
    spanned_rows,
)
from pipeline.downstream.classify import ridge, standardizer
from pipeline.downstream.features import load_classifier, train_classifier
from pipeline.downstream.lesson import Lesson
from pipeline.downstream.prior import draw_rows, load_prior
from pipeline.downstream.quality import held_out, measure
from pipeline.downstream.raw_data import raw_data
from pipeline.downstream.report import read_report
from pipeline.downstream.sample_store import opened_rows
from pipeline.downstream.sheet import group_sheet, pictures_of
from pipeline.downstream.statistics import principal_components
from pipeline.evaluate.opened import open_store
from pipeline.ingest.prepared import open_prepared
from schemas.base import Location

ROWS = 6000
"""Pictures of a store; of the store of starts of their own a third."""
HELD_OUT = 600
"""Samples of a prior, and held-out rows that they are compared with."""
NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
         "ankle boot")  # fmt: skip
SIREN = {"name": "siren", "width": 20, "depth": 2, "omega_first": 10, "omega_hidden": 10,
         "steps": 150, "rate": 5e-3, "target_psnr": None}  # fmt: skip
LEARNED = {"name": "learnit", "width": 20, "depth": 2, "omega_first": 10, "omega_hidden": 10,
           "inner_steps": 4, "inner_rate": 0.1, "fit_steps": 15, "inner_pixels": 784,
           "train_steps": 1000, "batch": 8, "rate": 2e-3}  # fmt: skip
FITS: dict[str, dict[str, Any]] = {
    "functa": {"name": "functa", "latent": 64, "width": 64, "depth": 4, "train_steps": 1500,
               "batch": 16, "inner_pixels": 400},
    "siren": {**SIREN, "start": "common"},
    "own": {**SIREN, "start": "own"},
    "grid": {"name": "functa", "latent": 16, "cells": 4, "width": 64, "depth": 4,
             "train_steps": 1000, "batch": 16, "inner_pixels": 576},
    "begun": LEARNED,
}  # fmt: skip
WORDS = {
    "functa": "latents of `functa`",
    "siren": "weights of `siren`, one start for all",
    "own": "weights of `siren`, each its own start",
    "grid": "grids of `functa`, 4 x 4 cells of 16",
    "begun": "weights of `learnit`, 15 steps from a learned start",
}
NETWORK = {"width": 256, "depth": 3}
LATENT_PRIORS: dict[str, dict[str, Any]] = {
    "rectified_flow": {"name": "rectified_flow", **NETWORK, "conditional": False},
    "flow": {"name": "flow", "width": 64, "conditional": False},
    "mixture": {"name": "gaussian", "mixture": 16, "conditional": False},
    "classes": {"name": "rectified_flow", **NETWORK},
    "ddpm": {"name": "ddpm", **NETWORK, "conditional": False},
}
FREE = {"conditional": False}
TOKENS = {"name": "rectified_flow", "width": 128, "depth": 4, **FREE}
MIXTURE = {"name": "gaussian", "mixture": 16, **FREE}
OTHER_PRIORS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "unet": ("grid", {"name": "rectified_flow", "width": 64, "depth": 2, **FREE}, {}),
    "grid-mixture": ("grid", MIXTURE, {}),
    "tokens": ("siren", TOKENS, {"steps": 1500, "rate": 1e-3}),
    "begun-tokens": ("begun", TOKENS, {"steps": 1500}),
    "begun-components": (
        "begun",
        {"name": "rectified_flow", **NETWORK, **FREE, "normalize": "whiten", "components": 48},
        {"steps": 4000},
    ),
    "begun-mixture": ("begun", MIXTURE, {}),
}
"""On grids (a U-Net) and on weights (a transformer of tokens): store, method, how it is trained."""
SEEDED, SEEDS = ("rectified_flow", "mixture"), 3
TRAIN = {"steps": 3000, "batch": 128, "rate": 2e-3, "previews": 0}
SHOWN = ("one_nn", "kid", "frechet", "density", "coverage", "confidence", "class_shift",
         "nearest_learned")  # fmt: skip


# --- jobs -----------------------------------------------------------------------------------


def fit(bench: Bench, folder: Path, name: str) -> str:
    """The URL of a store of pictures."""
    dataset = {"url": str(folder.resolve() / "t10k-images-idx3-ubyte.gz"), "kind": "images"}
    limit = ROWS if name != "own" else ROWS // 3
    return bench.fit(
        f"fashion-{name}",
        {"dataset": dataset, "ingest": {"color": "gray"}, "method": FITS[name], "limit": limit,
         "prepared": "fashion.prepared"},
    )  # fmt: skip


def probe(bench: Bench, name: str) -> dict[str, Any]:
    """What can be read off the rows of a store."""
    readers = ["linear", "knn", "mlp"]
    if name == "own":  # the others are controls
        readers = ["mlp", "equivariant"]
    return bench.probe(f"fashion-{name}", classifiers=readers, shuffles=1, raw=name == "functa")


def prior(
    bench: Bench, name: str, source: str, method: dict[str, Any], *, seed: int = 0,
    **learning: Any,
) -> Lesson:  # fmt: skip
    """A trained prior with its samples and report."""
    return bench.prior(
        f"fashion-{name}" + (f"-{seed}" if seed else ""), f"fashion-{source}", method,
        sample={"count": 64}, evaluate={"rows": HELD_OUT, "resolution": 28},
        **({"train": {**TRAIN, **learning}} if method["name"] != "gaussian" else {}),
        **({"seed": seed} if seed else {}),
    )  # fmt: skip


def pixels(bench: Bench, url: str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Raw pictures of a store's rows, their labels, and which of them are learned from."""
    index = open_store(url).index
    ids = index["sample_id"].to_pylist()
    prepared = open_prepared(Location(url=str(bench.work / "fashion.prepared")))
    raw = raw_data(prepared, ids, side=28, cells=8, points=16)
    labels = torch.tensor([int(v) for v in index["label"].to_pylist()])
    return raw.values, labels, np.array(index["split"].to_pylist()) == "train"


def classifier(bench: Bench, url: str) -> str:
    """A classifier of the real pictures, as a file of weights."""
    path = bench.work / "classifier.safetensors"
    if not path.exists():
        x, labels, known = pixels(bench, url)
        pictures = x.reshape(-1, 1, 28, 28)[known]
        model = train_classifier(pictures, labels[known], 10, steps=1500)
        save_file(model.state_dict(), path)
    return str(path)


def measured_again(lesson: Lesson, features: str, work: Path) -> dict[str, dict[str, float]]:
    """Measures of decoded samples in the features of a classifier; kept beside the store."""
    path = work / f"measured-{lesson.job.name}.json"
    key = lesson.job.sample_identity(lesson.source_hash)
    if path.exists() and (known := json.loads(path.read_text()))["key"] == key:
        return known["decoded"]
    options = lesson.job.evaluate.model_copy(update={"features": features})
    asked = Lesson(lesson.job.model_copy(update={"evaluate": options}), lesson.dataset,
                   lesson.space, lesson.source_hash, lesson.classes)  # fmt: skip
    found = measure(asked, load_prior(asked)).table["decoded"]
    path.write_text(json.dumps({"key": key, "decoded": found}))
    return found


# --- telling --------------------------------------------------------------------------------


def stores_table(bench: Bench, urls: dict[str, str]) -> str:
    """Sizes and quality, beside principal components of the pixels."""
    rows = []
    for name, url in urls.items():
        store = open_store(url)
        size = sum(int(np.prod(s.shape)) for s in store.plan.arrays if s.rows)
        seen, new = (np.nanmedian(store.index[n].to_numpy()) for n in ("psnr_fit", "psnr"))
        rows.append([WORDS[name], len(store), size, f"{seen:.1f}", f"{new:.1f}"])
    x, _, known = pixels(bench, urls["functa"])
    found = principal_components(x[known], 64)
    back = found.project(x[~known]) @ found.axes + found.mean
    psnr = float((-10 * (back - x[~known]).square().mean(1).log10()).median())
    rows.append(["principal components of the pixels", len(x), 64, f"{psnr:.1f}", ""])
    header = ["what", "rows", "numbers a row", "PSNR (median, dB)", "of pixels left out"]
    return markdown(header, rows)


def components_line(bench: Bench, url: str) -> list[Any]:
    """The linear probe on as many principal components of the pixels as a latent has entries."""
    x, labels, known = pixels(bench, url)
    found = principal_components(x[known], 64).project(x)
    standard = standardizer(found[known])
    scores = ridge(standard(found[known]), labels[known], 10)(standard(found[~known]))
    right = float((scores.argmax(1) == labels[~known]).double().mean())
    return ["principal components of the pixels", 64, int(known.sum()), "linear", f"{right:.3f}",
            ""]  # fmt: skip


def sheet(bench: Bench, lessons: dict[str, Lesson], best: str) -> None:
    """Real pictures, their fits, samples of a prior and of the Gaussian; samples by class."""
    lesson, side, count = lessons[best], 56, 24
    dataset = lesson.job.source
    values, _ = held_out(lesson)
    ids = open_store(dataset).index
    test = [i for i, s in enumerate(ids["split"].to_pylist()) if s != "train"]
    found = measure(lesson, load_prior(lesson)).pictures
    chosen = np.linspace(0, len(values) - 1, count).astype(int)
    rows = [test[i] for i in np.linspace(0, len(test) - 1, len(values)).round().astype(int)]
    x, _, _ = pixels(bench, dataset.url)
    real = [picture(x[rows[i]].reshape(28, 28), side) for i in chosen]

    def decoded(codes: Tensor) -> list[Any]:
        opened = opened_rows(lesson.parent, lesson.space.array, codes.numpy())
        return pictures_of(opened, len(codes), side)

    groups = {
        "real pictures, held out": real,
        "the same, decoded from their 64 numbers": decoded(values[chosen]),
        f"samples of a prior on these numbers ({best.replace('_', ' ')})": decoded(
            found["prior"][:count]
        ),
        "samples of a Gaussian with full covariance": decoded(found["gaussian"][:count]),
    }
    group_sheet(groups, side, "Fashion-MNIST", columns=12).save(DOCS / "fashion_prior.png")
    lesson = lessons["classes"]
    groups = {
        name: pictures_of_class(lesson, str(number), 12, side) for number, name in enumerate(NAMES)
    }
    title = "Fashion-MNIST: samples of one prior, class by class"
    group_sheet(groups, side, title, columns=12).save(DOCS / "fashion_classes.png")


def pictures_of_class(lesson: Lesson, name: str, count: int, side: int) -> list[Any]:
    """Samples of one class."""
    options = lesson.job.sample.model_copy(update={"classes": (name,)})
    asked = Lesson(lesson.job.model_copy(update={"sample": options}), lesson.dataset,
                   lesson.space, lesson.source_hash, lesson.classes)  # fmt: skip
    rows, _ = draw_rows(load_prior(asked), asked, 0, count)
    codes = asked.normalization.back(rows.float())
    return pictures_of(opened_rows(asked.parent, asked.space.array, codes.numpy()), count, side)


def picture(values: Tensor, side: int) -> Image.Image:
    grey = (values.clamp(0, 1) * 255).round().byte().numpy()
    return Image.fromarray(grey).convert("RGB").resize((side, side), Image.Resampling.NEAREST)


def accuracy_of(path: str, bench: Bench, url: str) -> float:
    """Of the classifier whose features are used, on held-out pictures."""
    model = load_classifier(path)
    x, labels, known = pixels(bench, url)
    with torch.no_grad():
        answers = model(x.reshape(-1, 1, 28, 28)[~known]).argmax(1)
    return float((answers == labels[~known]).double().mean())


def method_words(name: str) -> str:
    """Of a prior of `OTHER_PRIORS` or `LATENT_PRIORS`."""
    source, method, _ = OTHER_PRIORS.get(name, ("functa", LATENT_PRIORS.get(name), {}))
    if method["name"] == "gaussian":
        return f"mixture of {method['mixture']}"
    if "components" in method:
        return f"rectified flow of {method['components']} principal components"
    return {"grid": "U-Net", "functa": "rectified flow"}.get(source, "transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="IDX files of Fashion-MNIST")
    parser.add_argument("--work", type=Path, required=True, help="where stores are kept")
    parser.add_argument("--write", action="store_true", help="keep tables and pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.work)
    urls = {name: fit(bench, options.folder, name) for name in FITS}
    reports = {name: probe(bench, name) for name in FITS}
    features = classifier(bench, urls["functa"])
    lessons = {n: prior(bench, n, "functa", method) for n, method in LATENT_PRIORS.items()}
    others = {
        n: prior(bench, n, source, method, **learning)
        for n, (source, method, learning) in OTHER_PRIORS.items()
    }
    seeded = {
        n: [lessons[n], *(prior(bench, n, "functa", LATENT_PRIORS[n], seed=k)
                          for k in range(1, SEEDS))]
        for n in SEEDED
    }  # fmt: skip
    again = {n: measured_again(x, features, bench.work) for n, x in (lessons | others).items()}
    of_seeds = {n: [measured_again(x, features, bench.work) for x in all_of]
                for n, all_of in seeded.items()}  # fmt: skip
    parts = [text(bench, urls, reports, features, lessons, others, again, of_seeds)]
    print("\n".join(parts))
    if options.write:
        (RESULTS / "downstream_images.md").write_text("\n".join(parts))
        sheet(bench, lessons, "rectified_flow")
        for name, picture in (("unet", "fashion_grids"), ("begun-components", "fashion_weights")):
            found = others[name].files.get("sheet.png")
            assert found is not None  # written with the report
            (DOCS / f"{picture}.png").write_bytes(found)


def text(
    bench: Bench,
    urls: dict[str, str],
    reports: dict[str, dict[str, Any]],
    features: str,
    lessons: dict[str, Lesson],
    others: dict[str, Lesson],
    again: dict[str, dict[str, dict[str, float]]],
    of_seeds: dict[str, list[dict[str, dict[str, float]]]],
) -> str:
    probes = [line for name, report in reports.items() for line in probe_rows(WORDS[name], report)]
    probes.append(components_line(bench, urls["functa"]))
    pca = {n: read_report(x)["quality"]["table"] for n, x in (lessons | others).items()}
    seconds = {n: x.files.done()["seconds"] for n, x in lessons.items()}
    right = accuracy_of(features, bench, urls["functa"])
    carriers = []
    for source in ("functa", "grid", "siren", "begun"):
        names = [n for n, (of, _, _) in OTHER_PRIORS.items() if of == source]
        names = names or ["rectified_flow", "mixture"]
        lines = [("real", names[0], "real"), ("Gaussian", names[0], "gaussian")]
        for words, name, which in lines + [(method_words(n), n, "prior") for n in names]:
            code, decoded, seen = (t[which] for t in (pca[name]["code"], pca[name]["decoded"],
                                                      again[name]))  # fmt: skip
            carriers.append([WORDS[source], words, *(f"{t['one_nn']:.3f}" for t in (code, decoded)),
                             *(f"{seen[key]:.3g}" for key in SHOWN[:-1])])  # fmt: skip
    code = {n: pca[n]["code"] for n in lessons}
    decoded = {n: again[n] for n in lessons}
    by_pixels = {n: pca[n]["decoded"] for n in lessons}
    spent = ", ".join(f"{n} {s:.0f} s" for n, s in seconds.items())
    of_classifier = measured_rows(decoded, SHOWN[:-1])
    of_pixels = measured_rows(by_pixels, SHOWN[:5])
    names = ("one_nn", "density", "coverage", "rarest", "nearest_learned", "nll")
    day = time.strftime("%Y-%m-%d")
    header = ["rows", "samples", "1-NN of rows", "of pixels", *SHOWN[:-1]]
    return f"""# Fashion-MNIST as latents and as weights

`python -m benchmarks.downstream_images --folder FASHION_MNIST --work FOLDER --write`, {day};
{ROWS:,} of the data set's 10,000 test pictures, a fifth of them held out; one seed,
where not said otherwise.

## Stores

{stores_table(bench, urls)}

## What can be read off

Learned from the rows of the split train, measured on the others; 10 classes.

{markdown(PROBED, probes)}

## Priors on the latents

{HELD_OUT} samples beside as many held-out rows, decoded. Trained {TRAIN["steps"]} steps of
{TRAIN["batch"]} rows (wall seconds on a share of a core: {spent}).
`one_nn`: accuracy of telling samples from real rows by the nearest other, 0.5 is best; `kid` x
1000; `class_shift`: share of samples in classes that are too frequent.

In the features of a classifier of real pictures ({right:.1%} right on held-out ones):

{markdown(["samples of", *SHOWN[:-1]], of_classifier)}

In 20 principal components of pixels:

{markdown(["samples of", *SHOWN[:5]], of_pixels)}

The latents themselves (`nearest_learned`: distance to the nearest row learned from, far below that
of real rows for copies; `nll` of held-out rows in nats):

{markdown(["samples of", *names], measured_rows(code, names))}

Over {SEEDS} seeds of prior and draw, mean (least to greatest), in the classifier's features:

{markdown(["samples of", *SHOWN[:-1]], spanned_rows(of_seeds, SHOWN[:-1]))}

## What a prior learns: latents, grids, weights

Priors on grids are U-Nets (64 channels, 2 levels, 3000 steps), on weights transformers with
a token for each tensor (128 x 4, 1500 steps), all rectified flows that start from the normal
distribution of the rows. Figures from `one_nn` on in the classifier's features.

{markdown(header, carriers)}
"""


if __name__ == "__main__":
    main()
