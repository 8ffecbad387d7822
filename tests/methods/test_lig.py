"""Local Implicit Grids on unseen scenes; oriented points alone place and train its codes."""

import pytest
import torch

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.fields import nodes, tables
from pipeline.fields.bind import bind
from pipeline.fitting import bindable, fit_rows, start_shared
from pipeline.samples import load_samples
from schemas.samples import FormSpec
from tests.fitting.tables import box_table

SETTINGS = {"resolution": 8, "capacity": 700, "code": 6, "width": 2, "fit_steps": 5}


@pytest.fixture(scope="module")
def figures():
    return acceptance("lig").run(0)


@pytest.mark.slow
def test_parts_of_other_scenes_tell_the_sides_of_unseen_ones(figures):
    acceptance("lig").check(figures)


def with_normals(table):
    """Boxes with the normals of their surface points: of the face that a point lies on."""
    import numpy as np
    import pyarrow as pa

    found = {"surface": [], "held_surface": []}
    for name, lines in found.items():
        for row in range(table.num_rows):
            steps = np.frombuffer(table[f"{name}_coords"][row].as_py(), "<u2").reshape(-1, 3)
            coords = steps / 65535 * 2 - 1
            near = table["near_coords"][row].as_py()
            box = np.frombuffer(near, "<u2").reshape(-1, 3) / 65535 * 2 - 1
            inside = np.frombuffer(table["near_distance"][row].as_py(), "<f2") < 0
            low, high = box[inside].min(0), box[inside].max(0)
            local = (coords - (low + high) / 2) / ((high - low) / 2)
            axis = np.abs(local).argmax(1)
            normals = np.zeros(coords.shape, "<f2")
            normals[np.arange(len(axis)), axis] = np.sign(local[np.arange(len(axis)), axis])
            lines.append(normals.tobytes())
        place = table.column_names.index(f"{name}_normals")
        column = pa.array(lines, table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), column)
    return table


@pytest.fixture(scope="module")
def boxes():
    return load_samples(with_normals(box_table(3, points=2048, surface=2048)), "shapes")


def test_codes_lie_at_the_corners_of_the_cells_that_hold_points(boxes):
    method = methods.build("lig", methods.configure("lig", settings=SETTINGS), boxes.form)
    rows = fit_rows(method, start_shared(method, 0), boxes, seed=0).rows
    keys = rows["nodes_keys.value"]
    points = boxes.sets["surface"]
    for row in range(3):
        at = slice(int(points.starts[row]), int(points.starts[row] + points.counts[row]))
        steps = points.columns["coords"][at].to(torch.int32).bitwise_and(0xFFFF)
        coords = steps.to(torch.float32) * (2 / 65535) - 1
        wanted = tables.key_of(nodes.corners(tables.cell_at(coords, 8)), 9).unique()
        count = int(rows["nodes_count.value"][row])
        have = set(keys[row, :count].tolist())
        assert set(wanted.tolist()) <= have
        assert len(have) <= 1.5 * len(wanted)  # the moved points may enter other cells


def test_what_codes_enclose_is_inside_unless_the_rule_is_the_authors(boxes):
    for empty in ("enclosed", "outside"):
        settings = SETTINGS | {"empty": empty, "resolution": 16, "capacity": 4000}
        method = methods.build("lig", methods.configure("lig", settings=settings), boxes.form)
        shared = start_shared(method, 0)
        rows = fit_rows(method, shared, boxes, seed=0).rows
        bound = bind(method.model, bindable(method, shared, rows))
        middle = torch.zeros(3, 1, 3)  # every box holds the middle
        corner = torch.full((3, 1, 3), 0.95)
        assert (method.read(bound, corner)["occupancy"] < 0.5).all()
        inside = method.read(bound, middle)["occupancy"] > 0.5
        assert inside.all() if empty == "enclosed" else not inside.any()


def test_a_row_does_not_depend_on_its_neighbors(boxes):
    method = methods.build("lig", methods.configure("lig", settings=SETTINGS), boxes.form)
    shared = start_shared(method, 0)
    rows = [fit_rows(method, shared, boxes, seed=0, lanes=n).rows for n in (2, 3)]
    assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0])


def test_points_without_normals_are_refused():
    with pytest.raises(ValueError, match=r"lig needs shapes or points with normals.*without"):
        methods.build("lig", methods.configure("lig"), FormSpec(kind="points", dims=3))
