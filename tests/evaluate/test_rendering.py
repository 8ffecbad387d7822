"""Pictures of closed forms: where a sphere is seen, how deep it lies, how it is lit."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from pipeline.evaluate.meshing import extract_mesh
from pipeline.evaluate.rendering import (
    SURFACE_COLOR,
    Rendering,
    View,
    render_mesh,
    render_picture,
    render_points,
)


@pytest.fixture(scope="module")
def sphere():
    return extract_mesh(lambda x: x.norm(dim=1) - 0.6, 64)


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_a_view_is_a_right_handed_frame_that_keeps_up_upwards(up):
    axes = View(azimuth=70, elevation=20, up=up).axes()
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    vertical = np.eye(3)["xyz".index(up)]
    assert axes[0] @ vertical == pytest.approx(0)
    assert axes[1] @ vertical == pytest.approx(np.cos(np.deg2rad(20)))


def test_a_sphere_is_seen_where_it_is(sphere):
    seen = render_mesh(sphere, 100)
    assert seen.mask.mean() == pytest.approx(np.pi * 0.6**2 / 4, rel=0.01)
    assert seen.depth[50, 50] == pytest.approx(-0.6, abs=2e-3)
    x = (np.arange(100) * 2 + 1) / 100 - 1
    radius = np.hypot(*np.meshgrid(x, x))
    np.testing.assert_allclose(
        seen.depth[radius < 0.5], -np.sqrt(0.36 - radius[radius < 0.5] ** 2), atol=0.02
    )
    np.testing.assert_allclose(seen.normal[50, 50], View().axes()[2], atol=0.03)
    assert np.isnan(seen.depth[0, 0])
    assert (seen.color[0, 0] == 1).all()


def test_light_comes_from_above_left(sphere):
    color = render_mesh(sphere, 64).color.mean(-1)
    assert color[22, 24] > color[42, 40] + 0.2
    assert color.max() <= 1


def test_points_of_a_sphere_look_like_its_mesh(sphere):
    random = np.random.default_rng(0).normal(size=(40_000, 3))
    normals = random / np.linalg.norm(random, axis=1, keepdims=True)
    cloud = render_points(normals * 0.6, normals, 64)
    mesh = render_mesh(sphere, 64)
    both = cloud.mask & mesh.mask
    assert both.sum() > 0.98 * mesh.mask.sum()
    inner = both & (np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 64)] * 2)) < 0.45)
    assert np.abs(cloud.color - mesh.color)[inner].mean() < 0.03
    assert np.abs(cloud.depth - mesh.depth)[inner].max() < 0.04  # discs at the front win


def test_hidden_points_stay_hidden():
    axes = View().axes()
    cloud = np.concatenate([np.tile(axes[2] * 0.5, (5, 1)), np.tile(-axes[2] * 0.5, (5, 1))])
    assert np.nanmin(render_points(cloud, None, 32).depth) == pytest.approx(-0.5)
    assert np.nanmax(render_points(cloud[::-1], None, 32).depth) == pytest.approx(-0.5)


def test_a_mesh_out_of_sight_is_background():
    far = trimesh.creation.icosphere(radius=0.1)
    far.apply_translation(View().axes()[0] * 3)
    assert (render_mesh(far, 16).color == 1).all()


def test_a_picture_is_sampled_at_pixel_centers():
    seen = render_picture(lambda x: (x + 1) / 2, 2, 4)
    np.testing.assert_allclose(seen.color[0, :, 0], [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(seen.color[:, 0, 1], [0.25, 0.75])
    assert render_picture(lambda x: x[:, :1] * 9, 2, 2).to_uint8().tolist() == [
        [[0], [255]],
        [[0], [255]],
    ]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_renderings_become_images(channels, mode):
    image = Rendering(np.full((3, 5, channels), 0.5, np.float32)).to_image()
    assert (image.mode, image.size) == (mode, (5, 3))
    assert np.asarray(image).max() == 128


def test_surface_color_is_what_full_light_shows():
    flat = trimesh.Trimesh([[-9, -9, 0], [9, -9, 0], [0, 18, 0]], [[0, 1, 2]], process=False)
    light = np.array([-0.45, 0.65, 0.8])
    color = render_mesh(flat, 8, view=View(azimuth=-90, elevation=90, up="z")).color
    expected = 0.25 + 0.75 * light[2] / np.linalg.norm(light)
    np.testing.assert_allclose(color[4, 4], expected * np.array(SURFACE_COLOR), rtol=1e-3)
