"""SIREN on videos: sines against ReLU and single frames; frames come back in files and in order."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from benchmarks.acceptance import acceptance
from jobs.cli import main
from pipeline import methods
from pipeline.draw import Draw
from pipeline.evaluate.contact_sheet import render_input
from pipeline.evaluate.grid_metrics import measure_video
from pipeline.evaluate.metrics import measure, psnr
from pipeline.evaluate.opened import open_store
from pipeline.evaluate.prepared_lines import line_of
from pipeline.fitting import choose_path, describe, fit_rows
from pipeline.ingest.camera_moves import camera
from pipeline.ingest.images import held_out_mask
from pipeline.samples import Size, load_samples
from schemas.samples import CLIP, IDENTITY, FormSpec
from tests.methods.rows_and_runs import assert_refused, assert_same_alone

SMALL = {"width": 32, "depth": 3, "steps": 40}
SIDES = ((5, 8, 12), (7, 8, 8), (4, 12, 8))


def table(sides=SIDES) -> pa.Table:
    import skimage.data

    whole = camera(Image.fromarray(skimage.data.coffee()), "pan", np.random.default_rng(0))
    lines = []
    for row, (frames, height, width) in enumerate(sides):
        clip = np.ascontiguousarray(whole[: 3 * frames : 3, row::4][:, :height, :width])
        held = held_out_mask(1, clip[..., 0].size, 0.1, 0, str(row))
        lines.append(
            {
                "row": row, "sample_id": f"{row}.gif", "label": "", "split": "train",
                "pixels": clip.tobytes(), "frames": frames, "height": height, "width": width,
                "channels": 3, "dtype": "uint8", "held_out": np.packbits(held).tobytes(),
                "fps": 25.0,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *CLIP]))


def clip_of(made: pa.Table, row: int) -> np.ndarray:
    shape = [made[n][row].as_py() for n in ("frames", "height", "width", "channels")]
    return np.frombuffer(made["pixels"][row].as_buffer(), np.uint8).reshape(shape) / 255


def siren(samples, **settings):
    return methods.build(
        "siren", methods.configure("siren", "video", {**SMALL, **settings}), samples.form
    )


def test_sines_and_one_network_for_all_frames_are_what_counts():
    module = acceptance("video")
    module.check(module.run(0))


def test_voxels_lie_where_they_say():
    made = table()
    samples = load_samples(made, "video")
    for row, sides in enumerate(SIDES):
        clip, count = clip_of(made, row), 0
        for role in ("context", "query"):
            one = Draw.of(samples.keys[row : row + 1], seed=0, stage="fit")
            grid = samples.draw(torch.tensor([row]), role, Size(), one).grid
            real = grid.weight[0] > 0
            at = ((grid.coords[0, real] + 1) * torch.tensor(sides) - 1) / 2
            assert torch.allclose(at, at.round(), atol=1e-4)
            t, y, x = at.round().long().unbind(-1)
            np.testing.assert_allclose(grid.color[0, real], clip[t, y, x], atol=1e-6)
            count += int(real.sum())
        assert count == np.prod(sides)


@pytest.mark.parametrize("fused", [False, True])
def test_a_row_is_the_same_alone_and_among_others(fused):
    whole, one = load_samples(table(), "video"), load_samples(table().slice(2, 1), "video")
    assert_same_alone(siren(whole), whole, one, 2, fused)


def test_random_voxels_a_step_reach_what_all_of_them_do():
    samples = load_samples(table(((8, 12, 24),)), "video")
    found = {}
    for pixels in (256, "all"):
        method = siren(samples, pixels=pixels, steps=200)
        rows = fit_rows(method, {}, samples, seed=0, fused=choose_path(method)[0]).rows
        found[pixels] = measure("video", method, {}, rows, samples, table(((8, 12, 24),)))
    assert found[256]["psnr_fit"][0] > 25
    assert abs(found[256]["psnr_fit"][0] - found["all"]["psnr_fit"][0]) < 8


def test_metrics_are_those_of_their_definitions(monkeypatch):
    made = table()
    clip = clip_of(made, 0)
    held = np.unpackbits(np.frombuffer(made["held_out"][0].as_buffer(), np.uint8), count=480) > 0
    held = held.reshape(clip.shape[:3])

    def ask(x):
        return {"color": torch.stack([x[:, 0], x[:, 1], x[:, 2]], -1).mul(0.5).add(0.5)}

    axes = [(2 * np.arange(s) + 1) / s / 2 for s in clip.shape[:3]]
    predicted = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    for part in (2**16, 37):
        monkeypatch.setattr("pipeline.evaluate.grid_metrics.PART", part)
        found = measure_video(ask, line_of(made, 0))
        each = [psnr(p, c) for p, c in zip(predicted, clip)]
        assert found["psnr"] == pytest.approx(psnr(predicted[held], clip[held]), 1e-5)
        assert found["psnr_fit"] == pytest.approx(psnr(predicted[~held], clip[~held]), 1e-5)
        assert found["psnr_frames"] == pytest.approx(np.mean(each), 1e-5)
        assert found["psnr_worst"] == pytest.approx(min(each), 1e-5)


def test_the_preset_has_the_settings_of_the_authors():
    paper = methods.configure("siren", "paper_video")
    assert (paper.width, paper.depth, paper.steps, paper.rate) == (1024, 4, 100_000, 1e-4)
    assert paper.pixels == int(0.0038 * 250 * 272 * 640)
    method = methods.build("siren", paper, FormSpec(kind="video", channels=3, dims=3))
    spec = describe(method, seed=0)
    assert spec.layers[0]["scale"] == 30.0
    assert spec.coords["axes"] == ["t", "y (down)", "x (right)"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two small videos and one still, by the command line."""
    path = tmp_path_factory.mktemp("clips")
    (path / "data").mkdir()
    for row in range(2):
        frames = (clip_of(table(((6, 12, 10), (6, 12, 10))), row) * 255).round().astype(np.uint8)
        first, *rest = (Image.fromarray(f) for f in frames)
        first.save(
            path / "data" / f"{row}.apng", "PNG", save_all=True, append_images=rest, duration=50
        )
    Image.new("RGB", (9, 9)).save(path / "data" / "still.gif")
    (path / "run.yaml").write_text(
        f"name: c\ndataset: {{url: {path}/data, kind: video}}\ningest: {{held_out: 0.1}}\n"
        "method: {name: siren, preset: video, width: 32, depth: 3, steps: 300}\n"
        f"store: {path}/c.zarr\nresources: {{workers: 0}}\n"
    )
    assert main(["run", str(path / "run.yaml")]) == 0
    return path


def test_a_run_names_what_is_unusable_and_resumes(finished, capsys):
    assert main(["run", str(finished / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "still.gif: DEGENERATE: a video of one frame" in said
    assert "fit 1/" not in said
    store = open_store(str(finished / "c.zarr"))
    assert min(store.index["psnr_fit"].to_pylist()) > 25
    assert set(store.index["frames"].to_pylist()) == {6}


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0.6), ("webp", 0.6), ("gif", 16)])
def test_all_frames_are_exported(finished, suffix, tolerance):
    out = finished / f"out.{suffix}"
    target = str(finished / "c.zarr")
    assert main(["export", target, "--sample", "1.apng", "--to", str(out)]) == 0
    made = open_store(target).video("1.apng")
    with Image.open(out) as image:
        assert (image.n_frames, image.size) == (6, (10, 12))
        for number in range(6):
            image.seek(number)
            shown = np.asarray(image.convert("RGB"), float)
            assert np.abs(shown - made.at(number) * 255).mean() <= tolerance
        assert image.info["duration"] == 50


def test_an_mp4_is_written_that_is_read_again(finished):
    pytest.importorskip("cv2")
    from pipeline.ingest.video import decode_video
    from schemas.run import VideoIngest

    out = finished / "out.mp4"
    target = str(finished / "c.zarr")
    words = ["--sample", "1.apng", "--to", str(out), "--resolution", "48"]
    assert main(["export", target, *words]) == 0
    found = decode_video(out.read_bytes(), VideoIngest(), "id")
    assert (found["frames"], found["height"], found["width"]) == (6, 48, 40)
    made = open_store(target).video("1.apng", 48)
    read = np.frombuffer(found["pixels"], np.uint8).reshape(6, 48, 40, 3)
    assert np.abs(read[2] - made.at(2) * 255).mean() < 8


def test_time_is_continuous_and_the_middle_frame_is_the_picture(finished):
    store = open_store(str(finished / "c.zarr"))
    slow, own = store.video(0, pace=3), store.video(0)
    assert (slow.frames, slow.fps) == (18, own.fps * 3)
    np.testing.assert_allclose(slow.at(4), own.at(1), atol=1e-5)  # the same moment
    np.testing.assert_array_equal(store.render(0).color, own.at(3))
    line = line_of(table(), 0)
    np.testing.assert_allclose(render_input(line, 64).color, clip_of(table(), 0)[2], atol=1e-6)
    with pytest.raises(ValueError, match="bound no solid"):
        store.mesh(0)
    with pytest.raises(ValueError, match="not sounds"):
        store.sound(0)


def test_what_cannot_be_is_refused_before_the_first_task(finished, capsys):
    cases = {
        "method={name: liif}": "'liif' fits images, not video",
        "fit.context=view": "fit.context: view is of images, shapes and points",
        "ingest={fps: 5, stride: 2}": "both choose the frames",
        "ingest.frames=1": "greater than or equal to 2",
    }
    assert_refused(str(finished / "run.yaml"), cases, capsys)
