"""U-Nets and grid encoders: reach, shifts, windows, independence of batch mates."""

import pytest
import torch

from pipeline.draw import Draw
from pipeline.encoders.grids import GridEncoder
from pipeline.encoders.local import LocalVoxelNet, to_planes, to_volume, voxel_centers
from pipeline.encoders.unet import UNet
from pipeline.fields.bind import bind, tensor_names
from pipeline.fields.initializers import start_once
from pipeline.fields.planes import cells
from pipeline.fields.residual import LocalField

G = torch.Generator().manual_seed(0)


def bound(model, seed=0):
    model.eval()
    tensors = start_once(model, tensor_names(model), Draw.once(seed=seed, stage="shared"))
    return bind(model, tensors)


def points(n=2, count=300, reach=0.45):
    """Points in the middle of the box, so that shifts keep them inside."""
    return (torch.rand(n, count, 3, generator=G) * 2 - 1) * reach


@pytest.mark.parametrize(("dims", "levels"), [(2, 1), (2, 2), (2, 3), (3, 2)])
def test_a_u_net_reaches_as_far_as_it_says_and_moves_with_its_input(dims, levels):
    net = UNet(dims, 2, 3, width=4, levels=levels)
    side = 4 * net.step * (-(-net.radius // (2 * net.step)) + 1)
    x = torch.randn(1, 2, *[side] * dims, generator=G)
    with torch.no_grad():
        call = bound(net)
        y = call(x)
        poked = x.clone()
        middle = side // 2
        poked[(0, 0, *[middle] * dims)] += 10
        moved = (call(poked) - y).abs().amax(1)[0].nonzero()
        assert 0 < (moved - middle).abs().max() <= net.radius
        shifted = call(x.roll(net.step, 2))
        inner = slice(net.radius + net.step, side - net.radius)
        assert torch.allclose(shifted[:, :, inner], y.roll(net.step, 2)[:, :, inner], atol=1e-5)


def test_voxels_write_at_their_own_place():
    """Each plane's cell holds the mean over the axis that it leaves out."""
    occupancy = (torch.rand(2, 8, 8, 8, generator=G) > 0.5).float()
    centers = voxel_centers(8, occupancy)
    features = occupancy.reshape(2, -1, 1)
    planes = to_planes(
        features, tuple(cells(centers[..., list(a)], 8) for a in ((0, 1), (0, 2), (1, 2))), 8
    )
    for k, left_out in enumerate((3, 2, 1)):
        assert torch.allclose(planes[:, k, 0], occupancy.mean(left_out))
    assert torch.equal(to_volume(features, cells(centers, 8), 8)[:, 0], occupancy)
    net = LocalVoxelNet(3)
    assert bound(net)(occupancy).shape == (2, 512, 3)


SETTINGS = {
    "both": {"kind": "points", "planes": 8, "volume": 8, "unet_levels": 2},
    "voxels": {"kind": "voxels", "planes": 8, "volume": 8, "unet_levels": 2},
    "windows": {"kind": "points", "planes": 0, "volume": 8, "unet_levels": 1, "window": 4},
}


def encoder(kind, **settings):
    return GridEncoder(kind, 8, 2, 6, unet_width=8, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_in_fits_grids_have_the_same_bits_in_any_batch(name):
    call = bound(encoder(**SETTINGS[name]))
    seen = points(5)
    if name == "voxels":
        seen = (torch.rand(5, 8, 8, 8, generator=G) > 0.5).float()
    with torch.no_grad():
        whole, part = call(seen), call(seen[2:4])
    assert whole.keys() == part.keys()
    for grid in whole:
        assert torch.equal(whole[grid][2:4], part[grid])
        assert whole[grid].std(0).max() > 0


@pytest.mark.parametrize("levels", [1, 2])
def test_windows_of_any_size_give_the_same_volume(levels):
    settings = {"planes": 0, "volume": 8, "unet_levels": levels}
    small, large = (encoder("points", window=w, **settings) for w in (4, 8))
    seen = points(2, reach=1.0)
    with torch.no_grad():
        found = [bound(e)(seen)["volume"] for e in (small, large)]
    assert found[0].std() > 0
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_a_window_of_training_holds_what_the_whole_has_there_and_what_reads_touch():
    net = encoder("points", planes=0, volume=16, unet_levels=1, window=8)
    seen = points(2, reach=1.0)
    window = torch.tensor([[0, 8, 8], [8, 0, 0]])
    with torch.no_grad():
        whole, part = bound(net)(seen)["volume"], bound(net)(seen, window)["volume"]
    for i, (x, y, z) in enumerate(window.tolist()):
        rim = tuple(slice(max(a - 1, 0), a + 9) for a in (x, y, z))
        assert torch.allclose(part[i][:, *rim], whole[i][:, *rim], atol=1e-5)
        rest = part[i].clone()
        rest[:, *rim] = 0
        assert not rest.any()


def test_training_windows_hold_points_and_at_times_none():
    net = encoder("points", planes=0, volume=16, unet_levels=1, window=4)
    seen = points(64, reach=0.2) + 0.7
    draw = Draw.of(torch.arange(64), seed=0, stage="train")
    window = net.windows(seen, draw)
    assert (window % 4 == 0).all()
    assert ((window >= 0) & (window <= 12)).all()
    held = net.in_windows(seen, window).sum(1)
    assert 0.6 < (held > 0).float().mean() < 0.95
    assert (net.windows(seen, draw.at(draw.step + 1)) != window).any()


def test_with_windows_a_shift_of_the_scene_shifts_the_field_and_without_it_does_not():
    """By the coarsest cell of the U-Net; absolute coordinates tell places apart."""
    shift = 2 * 2 / 16 * torch.tensor([1.0, -1.0, 0.0])
    seen, queries = points(1, 500), points(1, 400)
    change = {}
    for window in (8, 0):
        net = encoder("points", planes=0, volume=16, unet_levels=2, window=window)
        field = LocalField(12, 2, 6, volume=16, cell=16 if window else 0)
        field.encoder = net
        call = bound(field, seed=1)
        tensors = dict(call._tensors)
        for i in range(2):  # blocks start as identity: let them count
            tensors[f"blocks.{i}.second.weight"] = torch.randn(12, 12, generator=G)

        def logits(by, net=net, field=field, tensors=tensors):
            rows = bind(field, {**tensors, "volume.value": torch.zeros(1, 6, 16, 16, 16)})
            volume = rows.encoder(seen + by)["volume"]
            return bind(field, {**tensors, "volume.value": volume})(queries + by)

        with torch.no_grad():
            here = logits(0)
            change[window] = float((logits(shift) - here).abs().max() / here.std())
    assert change[8] < 1e-4
    assert change[0] > 0.05
