"""The sheet shows what it says, the table counts right, the page escapes what stores contain."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluate.contact_sheet import Cell, contact_sheet, fit_into, lay_out, spread_rows
from pipeline.evaluate.opened import open_store
from pipeline.evaluate.prepared_lines import decode_picture, line_of
from pipeline.evaluate.rendering import Rendering
from pipeline.evaluate.report import html_report, markdown, quantiles, results
from schemas.base import Location
from tests.evaluate.prepared import picture_table
from tests.evaluate.stores import fitted_store


def test_a_sheet_shows_inputs_beside_reconstructions(pictures):
    store = pictures.open()
    sheet = contact_sheet(store, lambda row: pictures.table.slice(row, 1), side=64, columns=3)
    values = np.asarray(sheet, np.float32) / 255
    picture = decode_picture(line_of(pictures.table, 0))
    enlarged = picture.repeat(3, 0).repeat(3, 1)
    # the input stands there exactly, enlarged without smoothing and centred in its cell ...
    height, width, _ = enlarged.shape
    column = 18 + (64 - width) // 2
    found = [
        y
        for y in range(sheet.height - height)
        if np.abs(values[y : y + height, column : column + width] - enlarged).max() < 1 / 250
    ]
    assert len(found) == 1
    # ... and the reconstruction one cell to the right
    right = values[found[0] : found[0] + height, column + 70 : column + 70 + width]
    assert np.abs(right - enlarged).mean() < 0.05
    assert np.abs(right - enlarged[::-1, ::-1]).mean() > 0.1


def test_shapes_are_drawn_from_points_and_meshes(spheres):
    sheet = contact_sheet(spheres.open(), lambda row: spheres.table.slice(row, 1), count=2, side=96)
    values = np.asarray(sheet)
    blue = values[..., 2].astype(int) - values[..., 0] > 15
    left, right = blue[:, : 96 + 18].sum(), blue[:, 96 + 18 : 2 * 96 + 24].sum()
    assert left > 1000
    assert right == pytest.approx(left, rel=0.25)


def test_rows_of_a_sheet_are_spread_over_the_store(pictures):
    assert spread_rows(pictures.open(), 3) == [0, 3, 6]
    assert spread_rows(pictures.open(), 50) == list(range(9))


def test_any_name_can_be_drawn():
    names = ("☃/ünï.png", "x" * 500, "", "../../etc\n<b>")
    image = Image.new("RGB", (8, 8))
    sheet = lay_out([Cell(None, image, (name,)) for name in names], 32, 2, "☃ title" * 50)
    assert sheet.width == 2 * (32 + 18) + 18


def test_missing_reconstructions_leave_a_frame():
    sheet = lay_out([Cell(Image.new("RGB", (8, 8)), None, ("a", "no surface"))], 32, 3, "t")
    assert sheet.width > 64


@pytest.mark.parametrize(("size", "shown"), [((5, 10), (60, 30)), ((100, 300), (64, 21))])
def test_pictures_fit_their_cell(size, shown):
    assert fit_into(Rendering(np.zeros((*size, 3))), 64).size == shown


def test_transparent_pictures_lie_on_paper():
    clear = Rendering(np.zeros((2, 2, 4), np.float32))
    assert np.asarray(fit_into(clear, 4)).min() == 255


def test_quantiles_leave_out_what_is_no_number():
    assert quantiles(np.array([np.nan, 3, 1, 2])) == [1, 1, 2, 3, 3]
    assert quantiles(np.array([np.inf, 30.0])) == [30, 30, 30, np.inf, np.inf]
    assert quantiles(np.array([np.nan])) is None


def test_the_table_holds_the_figures(pictures):
    store = pictures.open()
    by_status, lines = results(store, {"chamfer_l1_occnet": np.array([0.5, np.nan, 0.7])})
    assert sum(by_status.values()) == 9
    names = {name: (count, spread) for name, count, spread in lines}
    quality = store.index["psnr"].to_numpy()
    assert names["psnr"][0] == 9
    assert names["psnr"][1][2] == pytest.approx(np.median(quality))
    assert names["chamfer_l1_occnet"] == (2, [0.5, 0.5, 0.5, 0.7, 0.7])
    assert "psnr_source" not in names  # no row has it
    text = markdown(store)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in rows}) == 1
    assert f"{np.median(quality):.4g}" in text


class Strict(HTMLParser):
    """Collects tags and checks that they close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_escapes_names_and_loads_nothing(tmp_path):
    evil = "<script>alert(1)</script>&.png"
    table = picture_table(shapes=[(4, 4), (4, 4)])
    ids = table.schema.get_field_index("sample_id")
    table = table.set_column(ids, table.schema.field(ids), [[evil, "b.png"]])
    location = Location(url=str(tmp_path / "evil.zarr"))
    settings = {"width": 4, "depth": 1, "steps": 3, "rate": 1e30, "schedule": "constant"}
    fitted_store(location, table, "images", "siren", settings)  # diverges: rows without a field
    store = open_store(location)
    assert store.rows() == []
    page = html_report(store, Image.new("RGB", (4, 4)))
    parser = Strict()
    parser.feed(page)
    assert not parser.open
    assert "script" not in parser.tags
    assert evil in parser.text
    assert not re.search(r"(?:src|href)='(?!data:)", page)
    assert "Rows without a field (2)" in page


def test_the_page_explains_its_metrics(pictures):
    page = html_report(pictures.open())
    assert "PSNR of held-out pixels in dB" in page
    assert "pixel_centers" in page
