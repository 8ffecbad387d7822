"""Views against closed forms: silhouettes, projections, depth order, light that stays."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import trimesh

from pipeline.draw import Draw
from pipeline.ingest.mesh import Mesh
from pipeline.ingest.meshes import decode_shape
from pipeline.ingest.views import (
    AMBIENT,
    BACKGROUND,
    DISTANCE,
    GRAY,
    LIGHT,
    cameras_around,
    render,
)
from pipeline.samples import Size, load_samples
from schemas.run import ShapeIngest
from schemas.samples import IDENTITY, form_schema


def cameras(count=4, size=48, seed=0):
    return cameras_around(np.random.default_rng(seed), count, size)


def rays_of(cameras, view):
    """Origin and directions (z = 1 in the camera) of all pixel centers, written out."""
    size, pose = cameras.size, cameras.camera_to_world[view]
    focal, middle = cameras.intrinsics[view][0, 0], cameras.intrinsics[view][0, 2]
    directions = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            x, y = (column + 0.5 - middle) / focal, (row + 0.5 - middle) / focal
            directions[row, column] = x * pose[:3, 0] + y * pose[:3, 1] + pose[:3, 2]
    return pose[:3, 3], directions


def projected(cameras, view, points):
    """Column, row and depth of points."""
    pose = np.linalg.inv(cameras.camera_to_world[view])
    inner = points @ pose[:3, :3].T + pose[:3, 3]
    pixels = inner @ cameras.intrinsics[view].T
    return pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2], inner[:, 2]


def soup(count, seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(-0.6, 0.6, (count, 1, 3)) + random.normal(0, 0.15, (count, 3, 3))
    color = random.integers(0, 256, (count, 1, 3), np.uint8).repeat(3, 1)
    return Mesh(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), color=color)


def test_cameras_are_rigid_look_at_the_center_and_hold_z_up():
    taken = cameras(64)
    turn, place = taken.camera_to_world[:, :3, :3], taken.camera_to_world[:, :3, 3]
    assert np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
    assert np.abs(np.linalg.det(turn) - 1).max() < 1e-12
    assert np.abs(np.linalg.norm(place, axis=1) - DISTANCE).max() < 1e-12
    assert np.abs(place.mean(0)).max() < 0.1  # all around
    for view in range(64):
        column, row, depth = projected(taken, view, np.array([[0, 0, 0], [0, 0, 0.1]]))
        assert (column[0], row[0], depth[0]) == pytest.approx((24, 24, DISTANCE))
        assert column[1] == pytest.approx(24)
        assert row[1] < 24  # rows count downwards


def test_a_sphere_is_the_disc_of_its_silhouette_with_the_depth_of_its_front():
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.8)
    taken = cameras(3, size=48)
    color, mask, depth = render(Mesh(np.array(ball.vertices), np.array(ball.faces)), taken)
    for view in range(3):
        origin, rays = rays_of(taken, view)
        long = np.linalg.norm(rays, axis=-1)
        along = -(rays @ origin) / long**2  # nearest to the center
        miss = np.linalg.norm(origin + along[..., None] * rays, axis=-1)
        assert (mask[view] == (miss < 0.8))[np.abs(miss - 0.8) > 2e-3].all()
        assert mask[view].sum() == pytest.approx((miss < 0.8).sum(), rel=0.01)
        clear = miss < 0.7
        front = along[clear] - np.sqrt(0.64 - miss[clear] ** 2) / long[clear]
        assert np.abs(depth[view][clear] - front).max() < 2e-3
    assert (color[~mask] == BACKGROUND).all()
    assert np.isinf(depth[~mask]).all()


def test_known_points_land_on_the_pixels_they_project_to():
    random = np.random.default_rng(3)
    centers = random.uniform(-0.5, 0.5, (5, 3))
    boxes = [trimesh.creation.box([0.16] * 3) for _ in centers]
    faces = np.concatenate([box.faces + 8 * i for i, box in enumerate(boxes)])
    vertices = np.concatenate([box.vertices + c for box, c in zip(boxes, centers)])
    paints = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250]])
    color = paints.astype(np.uint8).repeat(12, 0)[:, None].repeat(3, 1)
    taken = cameras(6, size=64)
    pictures, mask, depth = render(Mesh(vertices, faces, color=color), taken)
    checked = 0
    for view in range(6):
        column, row, far = projected(taken, view, centers)
        for i in range(5):
            at = int(row[i]), int(column[i])
            assert mask[view][at]
            assert depth[view][at] < far[i]  # the front of the box, or of one before it
            if depth[view][at] > far[i] - 0.15:
                seen = pictures[view][at] > 60
                assert seen.tolist() == (paints[i] > 0).tolist()
                checked += 1
    assert checked > 20


def test_each_pixel_shows_the_nearest_triangle_of_a_soup_as_brute_force_finds_it():
    mesh, taken = soup(60, 1), cameras(2, size=32)
    _, mask, depth = render(mesh, taken)
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    for view in range(2):
        origin, rays = rays_of(taken, view)
        best = np.full((32, 32), np.inf)
        for p, q, r in zip(a, b, c):
            frame = np.stack([q - p, r - p, np.zeros(3)], axis=1)
            frames = np.broadcast_to(frame, (32, 32, 3, 3)).copy()
            frames[..., 2] = -rays
            u, v, t = np.moveaxis(np.linalg.solve(frames, (origin - p)[:, None])[..., 0], -1, 0)
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
            best = np.where(hit, np.minimum(best, t), best)
        assert (mask[view] == np.isfinite(best)).mean() > 0.999
        both = mask[view] & np.isfinite(best)
        assert both.mean() > 0.1
        assert np.abs(depth[view][both] - best[both]).max() < 1e-6


def test_order_and_orientation_of_faces_do_not_matter():
    mesh, taken = soup(60, 2), cameras(3)
    first = render(mesh, taken)
    order = np.random.default_rng(0).permutation(60)
    turned = Mesh(mesh.vertices, mesh.faces[order][:, ::-1], color=mesh.color[order][:, ::-1])
    second = render(turned, taken)
    assert (first[1] == second[1]).all()
    assert np.abs(first[0].astype(int) - second[0]).max() <= 1


def test_a_point_has_one_color_from_wherever_it_is_seen():
    """Light is fixed in the box: what radiance fields without directions can learn."""
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.9)
    taken = cameras(3, size=48)
    color, mask, depth = render(Mesh(np.array(ball.vertices), np.array(ball.faces)), taken)
    points, shades = [], []
    for view in range(3):
        origin, rays = rays_of(taken, view)
        seen = mask[view]
        points.append(origin + depth[view][seen][:, None] * rays[seen])
        shades.append(color[view][seen][:, 0].astype(float))
    points, shades = np.concatenate(points) / 0.9, np.concatenate(shades)
    expected = GRAY * (AMBIENT + (1 - AMBIENT) * (1 + points @ LIGHT) / 2)
    assert np.abs(shades - expected).max() < 5  # facets
    assert np.ptp(shades) > 90


def test_views_are_seeded_stored_and_drawn_with_their_cameras():
    solid = trimesh.creation.box([1, 2, 0.5]).export(file_type="obj").encode()
    ingest = ShapeIngest(near=64, uniform=64, surface=64, held_out=8, views=3, view_size=24)
    keys = ingest.model_dump()
    columns = decode_shape({"a.obj": solid}, "a.obj", ingest, "k")
    assert columns == decode_shape({"a.obj": solid}, "a.obj", ingest, "k")
    other = decode_shape({"a.obj": solid}, "a.obj", ingest, "another")
    assert columns["views_camera_to_world"] != other["views_camera_to_world"]
    plain = ingest.model_copy(update={"views": 0, "view_size": 64})
    without = decode_shape({"a.obj": solid}, "a.obj", plain, "k")
    assert without == {k: v for k, v in columns.items() if not k.startswith("views")}
    row = {"row": 0, "sample_id": "a", "label": None, "split": "train", **columns}
    schema = pa.schema([*IDENTITY, *form_schema("shapes", keys)])
    samples = load_samples(pa.Table.from_pylist([row], schema=schema), "shapes")
    draw = Draw.of(samples.keys, seed=0, stage="t")
    views = samples.draw(torch.tensor([0]), "context", Size(views=3), draw).views
    assert views.color.shape == (1, 3, 24, 24, 3)
    assert (views.color[views.mask == 0] == 1).all()
    assert 0.1 < views.mask.mean() < 0.9
    pose = views.camera_to_world[0].double().numpy()
    assert np.abs(np.linalg.norm(pose[:, :3, 3], axis=1) - DISTANCE).max() < 1e-6
