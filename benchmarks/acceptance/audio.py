"""Sounds by SIREN: the first layer must be as fast as the sound is long."""

from __future__ import annotations

from benchmarks.acceptance import Figures

DATA = "a gliding voice and plucked strings (computed), 5 s at 8 kHz; a tenth held out at random"
METRIC = "SNR of the held-out time steps, dB, of the worse sound"
CONTROL = "the first layer's frequency of 3000 (that of images, 30, instead)"
CLAIM = "sounds need a first layer a hundred times faster than images (supplement, audio)"
SECONDS, RATE = 5, 8000
INSTRUMENTS = ("voice", "string")
SETTINGS = {"width": 96, "steps": 500, "rate": 2e-4}
SLOW = 30.0


def run(seed: int) -> Figures:
    """SNR with the first layer of sounds and with that of images."""
    import numpy as np
    import pyarrow as pa

    from pipeline.ingest.audio import sound_columns
    from pipeline.ingest.instruments import INSTRUMENTS as PLAY
    from schemas.run import AudioIngest
    from schemas.samples import IDENTITY, SOUND

    lines = []
    for row, name in enumerate(INSTRUMENTS):
        parts = [PLAY[name](np.random.default_rng([seed, row, i])) for i in range(SECONDS)]
        made = np.concatenate(parts)[:, None] / max(np.abs(part).max() for part in parts)
        columns = sound_columns(made, RATE, AudioIngest(held_out=0.1, seed=seed), name)
        lines.append({"row": row, "sample_id": name, "label": name, "split": "train", **columns})
    table = pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *SOUND]))
    also = {}
    for name, settings in {"ours": {"omega_first": None}, "slow": {"omega_first": SLOW}}.items():
        found = _fit(table, {**SETTINGS, **settings}, seed)
        also[name] = float(found["snr"].min())
        also[f"{name}, fitted"] = float(found["snr_fit"].min())
    return Figures(also["ours"], also["slow"], also)


def _fit(table, settings: dict, seed: int) -> dict:
    from pipeline import methods
    from pipeline.evaluate.metrics import measure
    from pipeline.fitting import choose_path, fit_rows
    from pipeline.samples import load_samples

    samples = load_samples(table, "audio")
    method = methods.build("siren", methods.configure("siren", "audio", settings), samples.form)
    rows = fit_rows(method, {}, samples, seed=seed, fused=choose_path(method)[0]).rows
    return measure("audio", method, {}, rows, samples, table)


def check(figures: Figures) -> None:
    """Gates of the calibration."""
    assert figures.ours >= 8, f"{figures.ours:.1f} dB between the fitted steps, 8 are asked"
    assert figures.control <= 3, f"the first layer of images does as well: {figures.control:.1f} dB"
    assert figures.ours >= figures.control + 6, "the gain is less than 6 dB"
