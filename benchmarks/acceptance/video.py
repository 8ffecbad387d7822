"""Videos by SIREN: one field of (t, y, x), against ReLU and against a network for each frame."""

from __future__ import annotations

from benchmarks.acceptance import Figures

DATA = "3 clips of a camera over photographs, 16 frames of 32 x 32; a tenth of the voxels held out"
METRIC = "PSNR of the held-out voxels, dB, of the worst clip"
CONTROL = "sines (ReLU instead, the same sizes)"
CLAIM = "a SIREN represents video better than ReLU (supplement, video)"
FRAMES, SIDE = 16, 32
CLIPS = (("astronaut", "pan"), ("coffee", "zoom"), ("chelsea", "turn"))
SETTINGS = {"steps": 500}
FRAME_WIDTH = 18
"""Of the networks of single frames, 3 layers deep: 16 of them have as many parameters as ours."""


def run(seed: int) -> Figures:
    """PSNR of one SIREN a clip, of its ReLU twin, and of a small SIREN a frame."""
    from dataclasses import replace

    import numpy as np
    import pyarrow as pa
    import skimage.data
    from PIL import Image

    from pipeline import methods
    from pipeline.evaluate.metrics import measure
    from pipeline.fields.activations import Relu
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting import choose_path, fit_rows
    from pipeline.ingest.camera_moves import camera
    from pipeline.ingest.images import held_out_mask
    from pipeline.samples import load_samples
    from schemas.samples import CLIP, GRID, IDENTITY

    lines, frames = [], []
    for row, (name, move) in enumerate(CLIPS):
        picture = Image.fromarray(getattr(skimage.data, name)())
        whole = camera(picture, move, np.random.default_rng([seed, row]))
        clip = np.ascontiguousarray(whole[:FRAMES, :SIDE, :SIDE])
        held = held_out_mask(1, clip[..., 0].size, 0.1, seed, name)
        same = {"label": name, "split": "train", "height": SIDE, "width": SIDE, "channels": 3}
        same |= {"dtype": "uint8"}
        bits = np.packbits(held).tobytes()
        own = {"row": row, "sample_id": name, "pixels": clip.tobytes(), "held_out": bits}
        lines.append({**same, **own, "frames": FRAMES, "fps": 25.0})
        for i, mask in enumerate(held.reshape(FRAMES, -1)):
            bits = np.packbits(mask).tobytes()
            own = {"sample_id": f"{name}/{i}", "pixels": clip[i].tobytes(), "held_out": bits}
            frames.append({**same, **own, "row": len(frames)})
    table = pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *CLIP]))
    pictures = pa.Table.from_pylist(frames, schema=pa.schema([*IDENTITY, *GRID]))

    def measured(kind: str, method, samples, table) -> dict:
        rows = fit_rows(method, {}, samples, seed=seed, fused=choose_path(method)[0]).rows
        return measure(kind, method, {}, rows, samples, table)

    samples = load_samples(table, "video")
    method = methods.build("siren", methods.configure("siren", "video", SETTINGS), samples.form)
    layers = [Layer(row.width, Relu()) for row in method.model.table[:-1]]
    relu = MLP(3, [*layers, Layer(3)])
    twin = replace(method, field=replace(method.field, model=relu))
    also = {}
    for name, made in {"ours": method, "relu": twin}.items():
        found = measured("video", made, samples, table)
        also[name] = float(found["psnr"].min())
        also[f"{name}, fitted"] = float(found["psnr_fit"].min())
    samples = load_samples(pictures, "images")
    own = {"width": FRAME_WIDTH, "depth": 3, "rate": 2e-3, "target_psnr": None, "omega_first": 10.0}
    own |= SETTINGS
    single = methods.build("siren", methods.configure("siren", settings=own), samples.form)
    psnr = measured("images", single, samples, pictures)["psnr"].reshape(len(CLIPS), FRAMES)
    also["frame by frame"] = float((-10 * np.log10((10 ** (-psnr / 10)).mean(1))).min())
    parameters = [sum(p.numel() for p in m.model.parameters()) for m in (method, single)]
    also["parameters a clip"], also["parameters, by frame"] = parameters[0], parameters[1] * FRAMES
    return Figures(also["ours"], also["relu"], also)


def check(figures: Figures) -> None:
    """Gates of the calibration."""
    also = figures.also
    assert figures.ours >= 24, f"{figures.ours:.1f} dB between the fitted voxels, 24 are asked"
    assert figures.ours >= figures.control + 2, f"ReLU does as well: {figures.control:.1f} dB"
    share = also["parameters, by frame"] / also["parameters a clip"]
    assert 0.95 <= share <= 1.05, f"{share:.2f} as many parameters frame by frame"
    assert figures.ours >= also["frame by frame"] + 2, "a network for each frame does as well"
