"""Ten labeled samples: heads on fields beside networks from scratch, on pictures and shapes.

    python -m benchmarks.segmentation --parts PARTS.zarr --fashion F.zarr --kicad K.zarr --write

`benchmarks.two_parts` writes what makes PARTS.zarr; F.zarr holds Fashion-MNIST (functa), K.zarr
parts of the KiCad library in folders by kind (deepsdf); their prepared datasets are found beside
them or named by `--fashion-prepared`.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "segmentation.md"
KINDS = {"1": "trousers", "5": "shoe", "7": "shoe", "9": "shoe", "8": "bag"}
"""Of Fashion-MNIST's numbers; all others are worn above the waist."""
WORN = tuple("012345679")
CLASSES = ("background", "top", "trousers", "shoe", "bag")
THROUGH_HOLES = ("Capacitor_THT", "Diode_THT", "LED_THT", "Package_TO_SOT_THT")
METALS = {"PIN*": "metal", "MET*": "metal", "#666666": "metal", "#818181": "metal", "*": "body"}
"""KiCad's names of materials; the grays are bare sheet metal."""
MASKED = 600
"""Pictures of Fashion-MNIST that get masks, first ones; of these the seed chooses."""
GROUPS = (
    ("fields", re.compile("(linear|network|nearest|whole samples) (on|by|of) features")),
    ("from scratch", re.compile("from scratch")),
    ("controls", re.compile("(linear|network|nearest) (on|by) (untrained|coordinates)|largest")),
)


def fashion_masks(store: str, prepared: str, folder: Path) -> None:
    """What is where: the kind of thing at pixels that are not background (above 15 %)."""
    from pipeline.downstream.raw_data import raw_data
    from pipeline.evaluate.opened import open_store
    from pipeline.ingest.prepared import open_prepared
    from schemas.base import Location

    index = open_store(store).index.slice(0, MASKED)
    ids = index["sample_id"].to_pylist()
    pictures = raw_data(open_prepared(Location(url=prepared)), ids, side=28, cells=1, points=1)
    assert pictures.pictures is not None
    for name, label, picture in zip(ids, index["label"].to_pylist(), pictures.pictures):
        number = CLASSES.index(KINDS.get(label, "top"))
        mask = np.where(picture[0].numpy() > 0.15, number, 0).astype(np.uint8)
        Image.fromarray(mask).save(folder / f"{name}.png")


def measured(values: dict[str, Any], seeds: int, folder: Path) -> list[dict[str, Any]]:
    """The report of each seed."""
    from pipeline.downstream.segment import run_segment
    from schemas.probing import SegmentJob

    found = []
    for seed in range(seeds):
        name = f"{values['name']}-{seed}"
        job = SegmentJob.model_validate(
            {"train": {"steps": 300, "batch": 2048, "rate": 5e-3, "weight_decay": 1.0},
             "labelled": 10, "test": ["test"], "seed": seed, **values, "store": str(folder / name)}
        )  # fmt: skip
        found.append(run_segment(job, told=lambda line: print(line, flush=True)))
    return found


def table(title: str, words: str, reports: list[dict[str, Any]]) -> str:
    """One section: each reading's worst and mean of the seeds, sorted within its group."""
    names = reports[0]["table"]
    lines = [f"## {title}", "", words, "", "| | read from | mIoU of classes | of samples |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for group, pattern in GROUPS:
        means = {n: _mean(reports, n, "class_miou") for n in names if pattern.match(n)}
        for name in sorted(means, key=lambda n: -means[n]):
            worst = min(r["table"][name]["class_miou"] for r in reports)
            lines.append(
                f"| {group} | {name} | {worst:.3f} ({means[name]:.3f}) | "
                f"{_mean(reports, name, 'sample_miou'):.3f} |"
            )
    ours = _best(reports, GROUPS[0][1])
    scratch = _best(reports, GROUPS[1][1])
    gains = [
        100 * (r["table"][ours]["class_miou"] - r["table"][scratch]["class_miou"]) for r in reports
    ]
    lines += ["", f"Best of fields over best from scratch, points of each seed: "
              f"{', '.join(f'{g:+.1f}' for g in gains)}.", ""]  # fmt: skip
    return "\n".join(lines)


def _mean(reports: list[dict[str, Any]], name: str, key: str) -> float:
    return float(np.mean([r["table"][name][key] for r in reports]))


def _best(reports: list[dict[str, Any]], pattern: re.Pattern[str]) -> str:
    names = [n for n in reports[0]["table"] if pattern.match(n)]
    return max(names, key=lambda n: _mean(reports, n, "class_miou"))


HEAD = """\
# Segmentation from ten labeled samples

Worst of {seeds} seeds (mean); a seed draws the ten samples, one of each class of samples in turn
where there are classes, and starts the heads. All heads and networks learn from the same labels in
300 steps. Made by `python -m benchmarks.segmentation --write` with `--fashion`, `--kicad` and
`--parts`, the stores that its help describes.

- *features*: the last hidden layer; *surroundings*: values of the field around a point at five
  distances; *latent*: the sample's code
- *whole samples*: a U-Net of the pictures, a PointNet of the surface points
- *nearest*: votes of the five labeled points nearest in features and latent (weight 2)
- *untrained*: the decoder as it starts, with the latents of the trained one

"""


NOTES = """\
## What to take from it

- What lies in few words in a latent, such as the kind of a thing, is found by nearness: the labeled
  points nearest in features and latent. Heads with weights of their own have ten latents to learn
  from, and guess.
- What a part looks like is found by its surroundings in the field, best with a point network on
  top; of shapes these tell how thick a part is, which surface points do not.
- Trained features carry it: the same heads on an untrained decoder with the trained latents lose
  7 to 43 points.
- A picture whose surroundings are the picture itself gains nothing over a U-Net of it: white
  silhouettes, where the fields add no knowledge of other pictures.
- "Best of fields" is the best of seven readings by these same tests, "best from scratch" of two.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", help="store of benchmarks.two_parts")
    parser.add_argument("--fashion", help="store of Fashion-MNIST pictures")
    parser.add_argument("--fashion-prepared", help="prepared dataset of it")
    parser.add_argument("--kicad", help="store of KiCad parts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/segmentation.md")
    arguments = parser.parse_args()
    text = HEAD.format(seeds=arguments.seeds)
    with tempfile.TemporaryDirectory(prefix="segmentation-") as made:
        folder = Path(made)
        if arguments.fashion:
            prepared = arguments.fashion_prepared or (
                arguments.fashion.removesuffix(".zarr") + ".prepared"
            )
            (folder / "masks").mkdir()
            fashion_masks(arguments.fashion, prepared, folder / "masks")
            labels = {"kind": "masks", "masks": str(folder / "masks")}
            for worn, title in ((WORN, "what is worn where"), ((), "the same with bags")):
                source = {"url": arguments.fashion, "label": worn}
                values = {"name": f"fashion-{len(worn)}", "source": source, "labels": labels,
                          "prepared": {"url": prepared}, "points": 300,
                          "measured": 100}  # fmt: skip
                words = "functa, latents of 64; background, top, trousers, shoe"
                text += _section(f"Fashion-MNIST: {title}", words + (".", ", bag.")[not worn],
                                 values, arguments.seeds, folder)  # fmt: skip
        if arguments.kicad:
            for kinds, title in ((THROUGH_HOLES, "four kinds with leads"), ((), "ten kinds")):
                source = {"url": arguments.kicad, "label": kinds}
                values = {"name": f"kicad-{len(kinds)}", "source": source, "points": 300,
                          "measured": 70, "labels": {"names": METALS}}  # fmt: skip
                text += _section(f"KiCad parts of {title}: metal or body",
                                 "deepsdf, codes of 64; points of surfaces, by material.",
                                 values, arguments.seeds, folder)  # fmt: skip
        if arguments.parts:
            masks = Path(arguments.parts).parent / "masks"
            values = {"name": "parts", "source": arguments.parts, "points": 576, "measured": 100,
                      "labels": {"kind": "masks", "masks": str(masks)}}  # fmt: skip
            text += _section("White silhouettes of two parts",
                             "functa, latents of 32; background, body, part: only the form tells "
                             "them apart.", values, arguments.seeds, folder)  # fmt: skip
    text += NOTES
    print(text)
    if arguments.write:
        RESULTS.write_text(text)


def _section(title: str, words: str, values: dict[str, Any], seeds: int, folder: Path) -> str:
    reports = measured(values, seeds, folder)
    learned, test = reports[0]["learned"], reports[0]["test"]
    return table(title, f"{words} {learned} labeled samples, {test} others.", reports) + "\n"


if __name__ == "__main__":
    main()
