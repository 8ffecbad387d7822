"""SIREN on sounds: the first layer decides; rows, specifications and files agree with the field."""

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from benchmarks.acceptance import acceptance
from jobs.cli import main
from pipeline import methods
from pipeline.evaluate.grid_metrics import measure_sound
from pipeline.evaluate.metrics import measure
from pipeline.evaluate.opened import open_store
from pipeline.evaluate.prepared_lines import line_of
from pipeline.fields.bind import bind
from pipeline.fitting import choose_path, describe, fit_rows
from pipeline.ingest.audio import sound_columns
from pipeline.ingest.instruments import bar, voice
from pipeline.samples import load_samples
from schemas.run import AudioIngest
from schemas.samples import IDENTITY, SOUND, FormSpec
from tests.methods.rows_and_runs import assert_refused, assert_same_alone

SMALL = {"width": 32, "depth": 3, "steps": 60}


def table(lengths=(600, 800, 500)) -> pa.Table:
    lines = []
    for row, length in enumerate(lengths):
        made = (bar, voice)[row % 2](np.random.default_rng(row))[1000 : 1000 + length, None]
        columns = sound_columns(made, 8000, AudioIngest(held_out=0.1, silence_db=-120), str(row))
        own = {"row": row, "sample_id": f"{row}.wav", "label": "", "split": "train"}
        lines.append({**own, **columns})
    return pa.Table.from_pylist(lines, schema=pa.schema([*IDENTITY, *SOUND]))


def siren(samples, **settings):
    return methods.build(
        "siren", methods.configure("siren", "audio", {**SMALL, **settings}), samples.form
    )


def test_the_first_layer_of_images_cannot_follow_a_sound():
    module = acceptance("audio")
    module.check(module.run(0))


@pytest.mark.parametrize("fused", [False, True])
def test_a_row_is_the_same_alone_and_among_others(fused):
    whole, one = load_samples(table(), "audio"), load_samples(table().slice(1, 1), "audio")
    assert_same_alone(siren(whole), whole, one, 1, fused)


def test_the_compiled_loop_agrees_with_the_lanes_at_three_thousand():
    samples = load_samples(table((600,)), "audio")
    method = siren(samples, omega_first=3000.0, steps=10, rate=1e-5)
    if not choose_path(method)[0]:
        pytest.skip("this machine has no compiled loop")
    plain, fused = (fit_rows(method, {}, samples, seed=0, fused=f) for f in (False, True))
    assert fused.loss.item() == pytest.approx(plain.loss.item(), rel=0.02)


def test_time_steps_lie_at_their_centers_and_carry_their_amplitudes():
    from pipeline.draw import Draw
    from pipeline.samples import Size

    made = table((500,))
    samples = load_samples(made, "audio")
    draw = Draw.of(samples.keys, seed=0, stage="fit")
    stored = np.frombuffer(made["pixels"][0].as_buffer(), np.uint16) / 65535
    seen = []
    for role, count in (("context", 450), ("query", 50)):
        grid = samples.draw(torch.tensor([0]), role, Size(), draw).grid
        real = grid.weight[0] > 0
        at = ((grid.coords[0, real, 0] + 1) * 500 - 1) / 2
        assert torch.allclose(at, at.round(), atol=1e-3)
        number = at.round().long().numpy()
        assert len(set(number)) == count
        np.testing.assert_allclose(grid.color[0, real, 0].numpy(), stored[number], atol=1e-6)
        seen += number.tolist()
    assert sorted(seen) == list(range(500))


def test_presets_have_the_settings_of_the_authors_and_the_rule_is_in_the_specification():
    paper = methods.configure("siren", "paper_audio")
    assert (paper.width, paper.depth, paper.steps, paper.rate) == (256, 4, 9001, 1e-4)
    assert (paper.omega_first, paper.omega_hidden, paper.pixels) == (3000.0, 30.0, "all")
    method = methods.build("siren", paper, FormSpec(kind="audio", channels=1, dims=1))
    spec = describe(method, seed=0)
    assert [layer["scale"] for layer in spec.layers] == [3000.0, 30.0, 30.0, 30.0, 1.0]
    assert spec.coords == {
        "axes": ["t"],
        "range": [-1.0, 1.0],
        "time_steps": "(2 i + 1) / size - 1",
    }
    assert spec.output["quantity"] == "amplitude"
    # without a key the kind decides
    for kind, dims, omega in (("audio", 1, 3000.0), ("images", 2, 30.0), ("video", 3, 30.0)):
        form = FormSpec(kind=kind, channels=1, dims=dims)
        made = methods.build("siren", methods.configure("siren"), form)
        assert made.model.describe("")[0]["scale"] == omega


def test_snr_is_that_of_its_definition():
    made = table((500,))
    line = line_of(made, 0)
    stored = np.frombuffer(made["pixels"][0].as_buffer(), np.uint16) / 65535 * 2 - 1
    held = np.unpackbits(np.frombuffer(made["held_out"][0].as_buffer(), np.uint8), count=500) > 0
    found = measure_sound(lambda x: {"amplitude": 0.3 * x}, line)
    t = (2 * np.arange(500) + 1) / 500 - 1
    for name, where in (("snr", held), ("snr_fit", ~held)):
        error = ((0.3 * t - stored)[where] ** 2).sum()
        assert found[name] == pytest.approx(10 * np.log10((stored[where] ** 2).sum() / error), 1e-4)


def test_measuring_in_parts_changes_nothing(monkeypatch):
    samples = load_samples(table(), "audio")
    method = siren(samples)
    rows = fit_rows(method, {}, samples, seed=0).rows
    whole = measure("audio", method, {}, rows, samples, table())
    monkeypatch.setattr("pipeline.evaluate.grid_metrics.PART", 77)
    parts = measure("audio", method, {}, rows, samples, table())
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four sounds, one of them silent, by the command line."""
    path = tmp_path_factory.mktemp("sounds")
    data = path / "data"
    data.mkdir()
    for i, play in enumerate((bar, voice, bar)):
        made = play(np.random.default_rng(i))[:1600]
        soundfile.write(data / f"{i}.wav", 0.5 * made / np.abs(made).max(), 8000)
    soundfile.write(data / "silent.flac", np.zeros(800), 8000)
    (path / "run.yaml").write_text(
        f"name: s\ndataset: {{url: {data}, kind: audio}}\ningest: {{rate: 4000}}\n"
        "method: {name: siren, preset: audio, width: 32, depth: 3, steps: 200, omega_first: 300}\n"
        f"store: {path}/s.zarr\nresources: {{workers: 0}}\n"
    )
    assert main(["run", str(path / "run.yaml")]) == 0
    return path


def test_a_run_names_what_is_unusable_and_resumes(finished, capsys):
    assert main(["run", str(finished / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "silent.flac: DEGENERATE: silent" in said
    assert "fit 1/" not in said  # nothing is fitted twice
    store = open_store(str(finished / "s.zarr"))
    assert len(store) == 3
    assert {"snr", "snr_fit", "rate", "peak", "length"} <= set(store.index.column_names)
    assert min(store.index["snr_fit"].to_pylist()) > 3
    assert set(store.index["rate"].to_pylist()) == {4000}


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_row_is_heard_again_at_its_loudness(finished, suffix):
    store = open_store(str(finished / "s.zarr"))
    out = finished / f"out{suffix}"
    target = str(finished / "s.zarr")
    assert main(["export", target, "--sample", "0.wav", "--to", str(out)]) == 0
    heard, rate = soundfile.read(out)
    line = store.line("0.wav")
    assert (rate, len(heard)) == (4000, line["length"])
    made = store.sound("0.wav")
    np.testing.assert_allclose(heard, made.amplitude[:, 0] * line["peak"], atol=1e-4)
    finer = store.sound("0.wav", rate=8000)
    assert len(finer.amplitude) == 2 * line["length"]


def test_a_sound_has_a_picture_and_no_mesh(finished):
    store = open_store(str(finished / "s.zarr"))
    picture = store.render(0).color
    assert picture.shape == (96, 256, 1)
    assert 0 < (picture < 0.5).mean() < 0.9
    with pytest.raises(ValueError, match="bound no solid"):
        store.mesh(0)
    with pytest.raises(ValueError, match="holds audio, not videos"):
        store.video(0)


def test_other_methods_and_contexts_are_refused_before_the_first_task(finished, capsys):
    cases = {
        "method={name: fourier}": "'fourier' fits images, not audio",
        "fit.context=half": "fit.context: half is of images, shapes and points",
        "ingest.resolution=8": "unknown key 'resolution'",
        "ingest.rate=3": "greater than or equal to 100",
    }
    assert_refused(str(finished / "run.yaml"), cases, capsys)


def test_a_bound_row_repeats_what_values_say(finished):
    store = open_store(str(finished / "s.zarr"))
    t = torch.linspace(-1, 1, 50)[:, None]
    bound = bind(store.method.model, store.row_tensors(1))
    np.testing.assert_allclose(
        store.values(1, t)["amplitude"], bound(t[None])[0].detach().clamp(-1, 1), atol=1e-6
    )
