"""Boundary value problems: what is refused and why, units, and references against closed forms."""

import json

import numpy as np
import pytest

from pipeline.ingest.equations import decode_equation, reference, scaled
from pipeline.ingest.exact_waves import dalembert, outgoing_line, outgoing_plane, rings
from pipeline.ingest.wave_solvers import _helmholtz, _wave, solve_helmholtz, solve_wave
from schemas.base import Location
from schemas.equations import read_problem
from schemas.run import Dataset, EquationIngest
from schemas.samples import Code, RejectedSample
from tests.ingest.tools import lines, run_ingest

LINE = {
    "equation": "helmholtz",
    "dimension": 1,
    "wavenumber": 6.0,
    "sources": [{"at": [0.1], "variance": 0.01}],
}
WAVE = {
    "equation": "wave",
    "dimension": 1,
    "duration": 0.4,
    "sources": [{"at": [0.1], "variance": 0.01}],
}
BAD = [
    ({"wavenumber": -3}, "wavenumber: -3"),
    ({"wavenumber": None}, "wavenumber: is missing"),
    ({"equation": "heat"}, "equation: 'heat' is not known"),
    ({"dimension": 3}, "dimension: 3"),
    ({"sources": [{"at": [3.0], "variance": 0.01}]}, r"sources.0.at: \[3.0\] is outside"),
    ({"sources": [{"at": [0.0], "variance": float("nan")}]}, "sources.0.variance: nan is not a"),
    ({"sources": [{"at": [0.0]}]}, "sources.0.variance: is missing"),
    ({"sources": []}, "sources"),
    ({"sources": [{"at": [0.0], "variance": 1.0, "amplitude": 0.0}]}, "every amplitude is 0"),
    ({"sources": [{"at": [0.0, 0.0], "variance": 1.0}]}, "the dimension is 1"),
    ({"speed": [1.0, -2.0]}, "a speed is -2"),
    ({"speed": [[1.0, 1.0], [1.0, 1.0]]}, "a grid of 2 axes"),
    ({"duration": 1.0}, "duration: 1 means nothing"),
    ({"domain": 0.1}, "too few for the absorbing layer"),
    ({"bogus": 1}, "bogus: 1 is no key"),
    ({"wavenumber": True}, "wavenumber: True: true and false are no numbers"),
    ({"wavenumber": 10**400}, r"wavenumber: 10*\.\.\.: "),
    ({"domain": 1e300}, r"domain: 1e\+300"),
    ({"speed": 1e-300}, "a speed is 1e-300; 1e-50 is the least"),
    ({"sources": [{"at": [0.0], "variance": 1e-80}]}, "sources.0.variance: 1e-80"),
]


def decoded(problem, **keys):
    keys = {"equation": problem["equation"], "dimension": problem["dimension"], **keys}
    return decode_equation(
        {"a.json": json.dumps(problem).encode()}, "a.json", EquationIngest(**keys), ""
    )


def values(columns):
    return np.frombuffer(columns["reference"], "<f4").reshape(columns["reference_shape"])


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_value_is_named_with_its_key(change, words):
    with pytest.raises(ValueError, match=words):
        read_problem(json.dumps({**LINE, **change}).encode(), False)


def test_a_number_of_yaml_that_it_takes_for_a_text_is_one():
    text = "{equation: wave, dimension: 1, duration: 4e-1, sources: [{at: [0], variance: 1e-2}]}"
    assert read_problem(text.encode(), True).sources[0].variance == 0.01


@pytest.mark.parametrize(
    "keys",
    [
        {"reference": 10**9},
        {"reference": 4096, "dimension": 2},
        {"reference": 8192, "equation": "wave"},
        {"medium": 5000, "dimension": 2},
    ],
)
def test_grids_that_no_memory_holds_are_refused_with_the_key(keys):
    """Before a file is read: they were tried, minutes a problem, and blamed on it."""
    with pytest.raises(ValueError, match=f"{next(iter(keys))}: .* values a problem; 4,194,304 are"):
        EquationIngest(**keys)


def test_waves_that_nothing_determines_or_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="reaches 2, through the whole domain"):
        read_problem(json.dumps({**WAVE, "duration": 2.0}).encode(), False)
    source = {"at": [0.0], "variance": 0.01, "amplitude": [1.0, 1.0]}
    with pytest.raises(ValueError, match="is complex"):
        read_problem(json.dumps({**WAVE, "sources": [source]}).encode(), False)
    with pytest.raises(RejectedSample, match=r"equation: wave; .* prepared for helmholtz"):
        decoded(WAVE, equation="helmholtz")
    with pytest.raises(RejectedSample, match=r"sources: 3; ingest.sources is 2"):
        decoded({**LINE, "sources": LINE["sources"] * 3}, sources=2)
    tiny = [{"at": [0.0], "variance": 1e-12}]
    with pytest.raises(RejectedSample, match="need") as error:
        decoded({**WAVE, "sources": tiny, "speed": [1.0, 2.0]})
    assert error.value.code == Code.TOO_LARGE


def test_bad_files_are_rows_with_reasons(tmp_path):
    good = json.dumps(LINE)
    files = {
        "good.json": good,
        "nan.json": good.replace("0.01", "NaN"),
        "broken.json": good[:-5],
        "list.json": "[1, 2]",
        "twice.json": good.replace('"dimension": 1', '"dimension": 1, "dimension": 1'),
        "empty.json": " ",
        "good.yaml": "equation: helmholtz\ndimension: 1\nwavenumber: 7\n"
        "sources: [{at: [0], variance: 0.02}]\n",
        "unsafe.yaml": "!!python/object/apply:os.system ['true']\n",
    }
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    dataset = Dataset(url=str(folder), kind="equations")
    prepared = run_ingest(dataset, Location(url=str(tmp_path / "p")), EquationIngest())
    found = lines(prepared)
    status = {name: row["status"] for name, row in found.items()}
    assert {n for n, s in status.items() if s == "accepted"} == {"good.json", "good.yaml"}
    assert found["nan.json"]["code"] == "NAN_INPUT"
    assert "sources.0.variance" in found["nan.json"]["message"]
    assert found["empty.json"]["code"] == "EMPTY"
    assert "twice" in found["twice.json"]["message"]
    assert prepared.meta.rows == 2


def test_units_do_not_change_the_answer():
    """The same problem in meters and milliseconds."""
    small = decoded(WAVE)
    source = {"at": [100.0], "variance": 1e4, "amplitude": 3.0}
    large = {**WAVE, "domain": 1000.0, "speed": 500.0, "duration": 0.8, "sources": [source]}
    large = decoded(large)
    assert np.allclose(values(small), values(large), atol=1e-6)
    assert large["amplitude"] == 3.0
    assert large["scale"] == pytest.approx(1e-3)
    assert large["time_scale"] == pytest.approx(0.5)
    line = decoded(LINE)
    far = {**LINE, "domain": 10.0, "wavenumber": 0.6, "sources": [{"at": [1.0], "variance": 1.0}]}
    far = decoded(far)
    assert np.allclose(values(line), values(far), atol=1e-5)
    # u'' + k^2 u = source: lengths ten times as long make it ten times as large
    assert far["amplitude"] == pytest.approx(10 * line["amplitude"])


@pytest.mark.parametrize("d", [1, 2])
def test_closed_forms_of_helmholtz_solve_the_equation(d):
    k, variance, h = 9.0, 0.004, 1e-3
    x = np.linspace(-0.5, 0.5, 41) + 0.003
    if d == 1:
        u = [outgoing_line(x + s, k, variance) for s in (-h, 0, h)]
        bent = (u[0] - 2 * u[1] + u[2]) / h**2
    else:
        at = [(x, 0 * x), (x - h, 0 * x), (x + h, 0 * x), (x, 0 * x - h), (x, 0 * x + h)]
        parts = [outgoing_plane(np.hypot(*p), k, variance) for p in at]
        u = [None, parts[0]]
        bent = (sum(parts[1:]) - 4 * parts[0]) / h**2
    source = np.exp(-(x**2) / (2 * variance)) / (2 * np.pi * variance) ** (d / 2)
    assert np.abs(bent + k**2 * u[1] - source).max() < 2e-3 * source.max()


def test_closed_forms_of_waves_solve_the_equation():
    variance, h = 0.01, 1e-3
    r = np.linspace(0.1, 0.8, 30)
    t = 0.3 + h * np.array([-1, 0, 1])
    u = rings(t, np.concatenate([r - h, r, r + h]), variance).reshape(3, 3, 30)
    bent = (u[1, 0] - 2 * u[1, 1] + u[1, 2]) / h**2 + (u[1, 2] - u[1, 0]) / (2 * h * r)
    assert np.abs((u[0, 1] - 2 * u[1, 1] + u[2, 1]) / h**2 - bent).max() < 0.05
    assert np.abs(rings(np.zeros(1), r, variance)[0] - np.exp(-(r**2) / 0.02)).max() < 1e-6


def one(*x):
    return np.ones(np.broadcast_shapes(*(a.shape for a in x)))


@pytest.mark.parametrize("d", [1, 2])
def test_helmholtz_converges_at_second_order_and_better_when_extrapolated(d):
    k, variance = 10.0, 0.0064

    def source(*x):
        return np.exp(-sum(a**2 for a in x) / (2 * variance)) / (2 * np.pi * variance) ** (d / 2)

    def error(found):
        x = np.linspace(-1, 1, len(found))
        axes = np.meshgrid(*[x] * d, indexing="ij")
        inside = np.max(np.abs(axes), 0) <= 0.5
        if d == 1:
            exact = outgoing_line(x, k, variance)
        else:
            exact = outgoing_plane(np.hypot(*axes).ravel(), k, variance).reshape(found.shape)
        return np.linalg.norm((found - exact)[inside]) / np.linalg.norm(exact[inside])

    coarse, fine = (error(_helmholtz(source, one, k, d, n, 0.5, 5.0)) for n in (64, 128))
    assert 3.6 < coarse / fine < 4.6
    found, told = solve_helmholtz(source, one, k, d=d, count=64, depth=0.5)
    assert error(found) < told < 2 * fine
    assert error(found) < fine / 20


@pytest.mark.parametrize("d", [1, 2])
def test_leapfrog_converges_at_second_order(d):
    variance, t = 0.01, np.linspace(0, 0.5, 5)

    def start(*x):
        return np.exp(-sum(a**2 for a in x) / (2 * variance))

    def error(found):
        x = np.linspace(-1, 1, found.shape[1])
        axes = np.meshgrid(*[x] * d, indexing="ij")
        if d == 1:
            exact = dalembert(t[:, None], x[None], variance)
        else:
            exact = rings(t, np.hypot(*axes).ravel(), variance).reshape(found.shape)
        return np.linalg.norm(found - exact) / np.linalg.norm(exact)

    coarse, fine = (error(_wave(start, one, d, n, 4, 0.5)) for n in (64, 128))
    assert 3.4 < coarse / fine < 4.8
    found, told = solve_wave(start, one, d=d, count=64, times=4, duration=0.5)
    assert error(found) < fine / 3
    assert error(found) < told


@pytest.mark.parametrize("problem", [LINE, WAVE])
def test_a_medium_that_hardly_varies_has_the_answer_of_one_speed(problem):
    plain = values(decoded(problem))
    nearly = values(decoded({**problem, "speed": [1.0, 1.0 + 1e-7]}))
    assert np.linalg.norm(plain - nearly) < 1e-3 * np.linalg.norm(plain)


def test_speeds_are_kept_at_their_nodes():
    problem = read_problem(json.dumps({**LINE, "speed": [1.0, 1.5, 1.0]}).encode(), False)
    kept = scaled(problem, 5)
    assert np.allclose(kept.speed, [1, 1.25, 1.5, 1.25, 1])
    assert np.allclose(kept.speed_at(np.array([-0.9, -0.375, 0.0])), [1, 1.125, 1.5])
    _, how, error = reference(kept, 64)
    assert how == "finite differences"
    assert 0 < error < 1e-2
