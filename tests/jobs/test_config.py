"""Run files: every error with its line and the way out, nothing that a file says can run code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.config import all_keys, load_run
from jobs.downstream import load_job
from jobs.tree import ConfigError
from pipeline.methods import configure
from schemas.downstream import METHODS, PriorJob, SampleQuality
from schemas.probing import ProbeJob
from schemas.run import ImageIngest, ingest_keys

GOOD = """\
name: my-run
dataset: {url: "s3://bucket/prefix/", kind: images}
method: {name: siren}
store: "s3://bucket/my-run.zarr"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def problems(path: str, *overrides: str, **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides, **options)
    return [line.replace(path, "RUN") for line in caught.value.problems]


def test_four_lines_are_enough(write):
    run = load_run(write(GOOD))
    assert run.prepared_location.url == "s3://bucket/my-run.prepared"
    assert run.ingest == ImageIngest()


def test_all_errors_come_at_once_with_line_and_nearest_key(write):
    path = write(
        'name: my run\ndataset: {url: "s3://b/p/", knd: images, kind: images}\n'
        "ingest:\n  resolution: abc\n  held_uot: 0.5\n"
        "method: {name: siren, widht: 3}\nstore: s3://b/x.zarr\n"
        "resources:\n  workerz: 3\nlimits: 5\n"
    )
    found = problems(path, "method.stesp=3", "fit.lanes=1", "nonsense")
    for start in (
        "override 'nonsense': must read key.path=value",
        "RUN:2: dataset.knd: unknown key 'knd'; did you mean 'kind'?",
        "RUN:9: resources.workerz: unknown key 'workerz'; did you mean 'workers'?",
        "RUN:10: limits: unknown key 'limits'; did you mean 'limit'?",
        "RUN:5: ingest.held_uot: unknown key 'held_uot'; did you mean 'held_out'?",
        "RUN:4: ingest.resolution: must be",
        "RUN:1: name: must be letters",
        "override 'fit.lanes=1': fit.lanes: must be greater than or equal to 2 (it is 1)",
        "RUN:6: method.widht: unknown key 'widht'; did you mean 'width'?",
        "override 'method.stesp=3': method.stesp: unknown key 'stesp'; did you mean 'steps'?",
    ):
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    assert len(found) == 10


def test_key_of_another_section_is_found(write):
    (line,) = problems(write(GOOD + "unit_rows: 4\n"))
    assert line == "RUN:5: unit_rows: unknown key 'unit_rows'; did you mean 'fit.unit_rows'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a run file is a mapping"),
        ("- a\n- b\n", "a run file is a mapping"),
        ("name: a\ndataset: [1, 2\n", "not valid YAML"),
        ("name: a\nname: b\n", "RUN:2: name: the key is given twice"),
        (
            "method: {name: siren, steps: 1, steps: 2}",
            "RUN:1: method.steps: the key is given twice",
        ),
        ('a: !!python/object/apply:os.system ["touch PWNED"]\n', "not valid YAML"),
        ("name: !!binary x\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "a key must be a plain word"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("name: \0\n", "not valid YAML"),
        ("name: a\n---\nname: b\n", "not valid YAML"),
        ("x" * 2**21, "larger than"),
    ],
    ids=range(12),
)
def test_file_that_is_no_run_file(write, text, expected):
    found = problems(write(text))
    assert any(expected in line for line in found), found


def test_file_of_another_verb_is_told_from_a_run_file(write):
    path = write("name: p\nsource: codes.zarr\nmethod: gaussian\nstore: p.zarr\n")
    (line,) = problems(path)
    assert line.startswith("RUN:2: this file reads a finished store")
    path = write(GOOD)
    with pytest.raises(ConfigError, match="this file makes a store") as caught:
        load_job(path, (), PriorJob, methods=METHODS)
    assert len(caught.value.problems) == 1
    path = write("name: p\nsource: codes.zarr\nevaluate: {}\nstore: p\n")
    with pytest.raises(ConfigError, match="unknown key 'evaluate'; keys of a run file: name, so"):
        load_job(path, (), ProbeJob)


def test_a_verb_without_a_run_file_asks_for_nothing_else(capsys):
    for verb in ("run", "prior"):
        assert main([verb]) == 2
        assert capsys.readouterr().err.endswith("are required: RUN.yaml\n")
    assert main(["prior", "a.yaml", "--bogus"]) == 2
    assert "see fieldmill prior --help" in capsys.readouterr().err


def test_aliases_that_multiply_are_refused_before_they_grow(write):
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (line,) = problems(write("\n".join(lines)))
    assert "stands for more than 20000 values" in line
    assert "RUN" in problems(write("a: &a [*a]\n"))[0]


def test_aliases_in_reason_are_fine(write):
    run = load_run(write(GOOD + "resources: &r {cores: 2}\ntrain: {workers: &n 3}\n"))
    assert run.resources.cores == 2


def test_folder_or_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_run(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_run(str(tmp_path))


def test_overrides_set_any_key(write):
    run = load_run(
        write(GOOD),
        [
            "store.endpoint=http://127.0.0.1:9000",
            "dataset.label.level=-1",
            "dataset.split={train: 1.0, test: 0.0}",
            "ingest.resolution=[32, 48]",
            "method.steps=7",
            "resources.workers=0",
        ],
    )
    assert run.store.url == "s3://bucket/my-run.zarr"
    assert run.store.endpoint == "http://127.0.0.1:9000"
    assert run.dataset.label.level == -1
    assert run.dataset.split.train == 1.0
    assert run.ingest.resolution == (32, 48)
    assert run.method.settings()["steps"] == 7
    assert run.resources.workers == 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name.first=x", "name is 'my-run', it has no keys below it"),
        ("=3", "must read key.path=value"),
        ("a..b=3", "must read key.path=value"),
        ("fit.lanes=[1", "the value is not valid YAML"),
        ("name=!!python/name:os.system x", "the value is not valid YAML"),
        ("dataset.kind=views", "dataset.kind: 'views' has no reader yet"),
        ("dataset.kind=sequences", "dataset.kind: 'sequences' has no reader yet"),
        ("dataset.kind=movies", "dataset.kind: must be 'images'"),
        ("method.name=sirne", "unknown method 'sirne'; did you mean 'siren'?"),
        ("method.name=os", "unknown method 'os'; 'methods' lists all of them"),
        ("method.name=../evil", "unknown method"),
        ("method.preset=papper", "method.preset: must be 'default' or 'paper'"),
        ("dataset.kind=shapes", "'siren' fits images, audio and video, not shapes"),
        ("store=https://host/x.zarr", "a store needs a file, s3 or memory URL"),
        ("store=ftp://host/x.zarr", "scheme 'ftp' is not one of"),
        ("store=s3://KEY:SECRET@bucket/x.zarr", "keys must not stand in a URL"),
        ("store=file://data/x.zarr", "names a host 'data'"),
        ("prepared=/tmp/x.zarr", "a prepared dataset is not a .zarr"),
        ("store=/tmp/x.prepared", "a store is not a .prepared"),
        ("dataset.split.train=0.5", "train + val + test = 0.7, must be 1"),
        ("resources.workers=many", "resources.workers: must be"),
    ],
)
def test_wrong_value_is_named_with_its_override(write, override, expected):
    found = problems(write(GOOD), override)
    assert any(expected in line for line in found), found
    assert any(override.partition("=")[0] in line or "RUN" in line for line in found)


def test_secret_in_a_url_is_not_repeated(write):
    (line,) = problems(write(GOOD), "dataset.url=s3://AKIAX:hunter2secret@bucket/x")
    assert "keys must not stand in a URL" in line
    assert "hunter2secret" not in line
    (line,) = problems(write(GOOD), "store.endpoint=https://me:hunter2secret@host")
    assert "keys must not stand in a URL" in line
    assert "hunter2secret" not in line
    signed = "https://host/a.parquet?X-Amz-Signature=hunter2secret"
    (line,) = problems(write(GOOD), f"dataset.url={signed}")
    assert "a signed URL is a credential" in line
    assert "hunter2secret" not in line


def test_memory_needs_this_process(write):
    found = problems(write(GOOD), "store=memory://x/y.zarr", "resources.workers=2")
    assert any("memory:// is seen by one process only" in line for line in found)
    load_run(write(GOOD), ["store=memory://x/y.zarr"])


def test_several_training_workers_need_ray(write):
    (line,) = problems(write(GOOD), "train.workers=2", "resources.workers=0")
    assert line.startswith("override 'train.workers=2': train.workers: 2 workers need Ray")


def test_relative_paths_start_at_the_current_directory(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    path = write(GOOD.replace('"s3://bucket/prefix/"', "../pictures"))
    monkeypatch.chdir("sub")
    run = load_run(path, ["store=out/x.zarr", "dataset.label.table=~/labels.csv"])
    assert run.dataset.url == str(tmp_path / "pictures")
    assert run.store.url == str(tmp_path / "sub" / "out" / "x.zarr")
    assert run.dataset.label.table.url == os.path.expanduser("~/labels.csv")
    assert run.prepared_location.url == str(tmp_path / "sub" / "out" / "x.prepared")


def test_pilot_has_its_own_store_unless_one_is_named(write):
    run = load_run(write(GOOD), limit=20)
    assert (run.limit, run.store.url) == (20, "s3://bucket/my-run.limit-20.zarr")
    assert run.prepared_location.url == "s3://bucket/my-run.limit-20.prepared"
    run = load_run(write(GOOD), ["store=s3://bucket/other.zarr"], limit=20)
    assert run.store.url == "s3://bucket/other.zarr"


def test_numbers_in_yaml_1_1_spelling(write):
    assert load_run(write(GOOD), ["resources.start_s=1e2"]).resources.start_s == 100


def test_every_key_that_is_shown_can_be_set():
    keys = list(all_keys())
    assert "dataset.label.regex" in keys
    assert "ingest.near_std" in keys
    assert len(keys) > 60


def test_dumped_run_is_a_run_file(write):
    run = load_run(write(GOOD), ["ingest.resolution=32", "method.steps=9"])
    text = yaml.safe_dump(run.model_dump(mode="json"))
    assert load_run(write(text)) == run


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("dataset.label.regex=(", "not a regular expression: missing ), unterminated"),
        ("dataset.group=a(", "not a regular expression"),
        ("ingest.resolution=[0, 5]", "must be greater than or equal to 1"),
        ("ingest.resolution=-3", "must be greater than or equal to 1"),
        ("resources.workers=-1", "must be greater than or equal to 0, or must be 'auto'"),
        ("store=s3:///my.zarr", "names no bucket"),
        ("store=s3://bucket/", "a store needs a name in its bucket"),
        ("dataset.url=s3://bucket/my-run.zarr/images", "lies in the store"),
        ("prepared=s3://bucket/my-run.zarr/prepared/", "lies in the store"),
        ("fit.trained_rows=keep", "has no effect with 'siren': nothing is trained"),
        ("method.shared_from=s3://bucket/other.zarr", "has no effect with 'siren'"),
        ("dataset.url=http:///a.tar", "names no server"),
    ],
)
def test_values_that_no_stage_could_use_are_refused_at_once(write, override, sentence):
    found = problems(write(GOOD), override)
    assert any(sentence in line for line in found), found
    assert all(override.partition("=")[0] in line for line in found), found


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
RUN_FILES = [p for p in EXAMPLES if "\nsource:" not in p.read_text()]  # others read a store


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: p.stem)
def test_example_is_a_run_file(path):
    run = load_run(str(path), [])
    assert path.stem in (run.method.name, run.dataset.kind)


def test_examples_run_in_one_folder():
    """No two write one store, and those that share a prepared dataset mean the same one."""
    runs = [load_run(str(path), []) for path in RUN_FILES]
    assert len({run.store.url for run in runs}) == len(runs)
    prepared: dict[str, dict] = {}
    for run in runs:
        keys = ingest_keys(run.dataset, run.ingest)
        assert prepared.setdefault(run.prepared_location.url, keys) == keys, run.name


def test_a_key_that_came_later_changes_no_older_run(write):
    text = GOOD.replace("method: {name: siren}", "method: {name: siren, prior: none}")
    assert load_run(write(text)) == load_run(write(GOOD))
    assert "prior" not in load_run(write(GOOD)).stage_keys("fit")["method"]
    assert load_run(write(GOOD), ["method.prior=tv"]).stage_keys("fit")["method"]["prior"] == "tv"


def test_a_later_key_beats_the_preset_that_sets_it(write, monkeypatch):
    from pipeline.methods import siren

    presets = siren.Config.presets()
    inpaint = siren.Config(prior="tv")
    monkeypatch.setattr(siren.Config, "presets", lambda: {**presets, "inpaint": inpaint})
    text = GOOD.replace("{name: siren}", "{name: siren, preset: inpaint, prior: none}")
    run = load_run(write(text))
    assert configure("siren", "inpaint", run.method.settings()).prior == "none"


def test_neighbors_are_fewer_than_the_rows_that_are_compared():
    with pytest.raises(ValueError, match="neighbors: 50 of 9 rows"):
        SampleQuality(rows=9, neighbors=50)
    assert SampleQuality(rows=0, neighbors=50).rows == 0  # nothing is compared


@pytest.mark.parametrize(
    ("kind", "word"), [("images", "30000 x 30000 pixels"), ("video", "2 frames of 30000 x 30000")]
)
def test_a_resolution_that_no_sample_could_have_is_refused(write, kind, word):
    (line,) = problems(write(GOOD.replace("images", kind)), "ingest.resolution=30000")
    assert word in line
