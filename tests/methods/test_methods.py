"""What holds for all methods: found by file, configured by name, rebuilt from specifications."""

import subprocess
import sys

import pytest

from pipeline import methods
from pipeline.fitting import describe, row_arrays, start_shared
from pipeline.fitting.method import row_names, shared_names
from schemas.samples import FormSpec
from schemas.store import FieldSpec

FORMS = {
    "images": FormSpec(kind="images", channels=3, dims=2),
    "audio": FormSpec(kind="audio", channels=1, dims=1),
    "video": FormSpec(kind="video", channels=3, dims=3),
    "shapes": FormSpec(
        kind="shapes", dims=3, signed=True, normals=True, voxels=64, views=4, view_size=64
    ),
    "points": FormSpec(kind="points", dims=3, normals=True),
    "equations": FormSpec(kind="equations", dims=1, channels=2, equation="helmholtz"),
}
OTHERS = {"wave": FormSpec(kind="equations", dims=2, channels=1, equation="wave")}
"""Forms of methods that want another one of the same kind."""
CASES = [
    (name, preset)
    for name in methods.method_names()
    for preset in methods.load(name).Config.presets()
]


def built(name, preset):
    config = methods.configure(name, preset)
    return methods.build(name, config, OTHERS.get(name, FORMS[methods.load(name).KINDS[0]]))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_specification_rebuilds_its_method(name, preset):
    method = built(name, preset)
    spec = describe(method, seed=3, dataset_fingerprint="f", versions={"code": "1"})
    again = methods.method_from_spec(FieldSpec.model_validate_json(spec.model_dump_json()))
    assert row_arrays(again) == row_arrays(method)
    assert describe(again, seed=3, dataset_fingerprint="f", versions={"code": "1"}) == spec
    assert spec.groups == {"rows": row_names(method), "shared": shared_names(method)}
    assert start_shared(again, 0).keys() == {a.name[7:] for a in row_arrays(again) if not a.rows}


@pytest.mark.parametrize("name", methods.method_names())
def test_every_key_is_explained_and_every_method_says_what_it_is(name):
    module = methods.load(name)
    for key, info in module.Config.model_fields.items():
        assert info.description, f"{name}.{key} has no docstring"
    assert module.PAPER
    assert module.STRATEGY
    assert module.STORES
    assert {"default", "paper"} <= module.Config.presets().keys()
    for kind, form in FORMS.items():
        if kind not in module.KINDS:
            with pytest.raises(ValueError, match=f"{name} .*{kind}"):
                module.build(module.Config(), form)


def test_configurations_need_no_torch():
    code = (
        "import sys; from pipeline import methods\n"
        "for name in methods.method_names(): methods.configure(name, 'paper')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_name_the_nearest_word():
    with pytest.raises(ValueError, match=r"unknown method 'deepsfd'; did you mean 'deepsdf'\?"):
        methods.load("deepsfd")
    with pytest.raises(ValueError, match=r"unknown key 'widht'.*did you mean 'width'\?"):
        methods.configure("siren", "default", {"widht": 3})
    with pytest.raises(ValueError, match=r"no preset 'papper'; it has default, paper"):
        methods.configure("siren", "papper")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        methods.configure("siren", "default", {"width": 0})
    with pytest.raises(ValueError, match="skip: 9 is not a hidden layer"):
        methods.build(
            "deepsdf", methods.configure("deepsdf", settings={"skip": 9}), FORMS["shapes"]
        )
    wrong = methods.configure("deepsdf", settings={"skip": 2, "depth": 3, "width": 64})
    with pytest.raises(ValueError, match="leaves no room"):
        methods.build("deepsdf", wrong, FORMS["shapes"])
