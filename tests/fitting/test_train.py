"""Training of shared parameters: workers, checkpoints, latents, and all five types of method."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline import methods
from pipeline.draw import Draw
from pipeline.fields.bind import bind
from pipeline.fields.latent import Latent
from pipeline.fields.linear import Linear
from pipeline.fields.mlp import MLP
from pipeline.fields.sine import sine_layers
from pipeline.fitting import bindable, fit_rows, row_arrays, start_shared, train
from pipeline.fitting.method import (
    Adversarial,
    Descend,
    Encoded,
    Field,
    Inner,
    MetaLearned,
    Phase,
)
from pipeline.fitting.optimizers import Adam, Sgd
from pipeline.objectives.photometric import color_mse
from pipeline.samples import Size, load_samples
from tests.fitting.tables import box_table, picture_table

SMALL = {"code": 8, "width": 24, "depth": 2, "points": 48, "batch": 4, "train_steps": 30}


def decoder(**settings):
    config = methods.configure("deepsdf", "default", {**SMALL, **settings})
    return methods.build("deepsdf", config, load_samples(box_table(1, points=8), "shapes").form)


def boxes(count=11, part=slice(None)):
    table = box_table(count, points=200)
    return load_samples(table.take(list(range(count))[part]), "shapes")


def equal(a, b, **close):
    same = torch.equal if not close else (lambda x, y: torch.allclose(x, y, **close))
    return all(same(a.shared[n], b.shared[n]) for n in a.shared) and all(
        same(a.rows[n], b.rows[n]) for n in a.rows
    )


def _worker(rank, world, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    saved = []
    result = train(
        decoder(),
        boxes(part=slice(rank, None, world)),
        seed=3,
        rank=rank,
        world=world,
        checkpoint=saved.append,
        checkpoint_s=0.0,
    )
    if rank == 0:
        arrays = [{k: v.numpy() for k, v in t.items()} for t in (result.shared, result.rows)]
        queue.put((arrays, result.row_numbers, saved[len(saved) // 2], len(saved)))
    torch.distributed.destroy_process_group()


def test_two_workers_train_what_one_trains_and_either_resumes_the_other():
    """Same batches, one all-reduce: equal to float32 summation order after 30 Adam steps."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_worker, args=(r, 2, port, queue)) for r in range(2)]
    for worker in workers:
        worker.start()
    (shared, rows), numbers, half, saves = queue.get(timeout=120)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    one = train(decoder(), boxes(), seed=3)
    assert numbers == one.row_numbers == list(range(11))
    assert saves == 30
    for ours, theirs in ((one.shared, shared), (one.rows, rows)):
        for name, value in ours.items():
            assert torch.allclose(value, torch.from_numpy(theirs[name]), atol=2e-4), name
    resumed = train(decoder(), boxes(), seed=3, resume=half)
    assert equal(one, resumed, atol=2e-4)


def test_resuming_gives_the_same_bits():
    saved = []
    whole = train(decoder(dropout=0.2), boxes(), seed=3, checkpoint=saved.append, checkpoint_s=0.0)
    assert len(saved) == 30
    for data in (saved[0], saved[13], saved[-1]):
        again = train(decoder(dropout=0.2), boxes(), seed=3, resume=data)
        assert equal(whole, again)
        assert again.log == whole.log
    with pytest.raises(ValueError, match="seed 3, this training 4"):
        train(decoder(), boxes(), seed=4, resume=saved[0])


def test_latents_move_only_when_their_sample_is_drawn():
    method = decoder(train_steps=1)
    (phase,) = method.train
    start = train(replace(method, train=(replace(phase, steps=0),)), boxes(), seed=3)
    one = train(method, boxes(), seed=3)
    moved = (one.rows["code.value"] != start.rows["code.value"]).any(1)
    assert moved.sum() == 4
    passes = train(replace(method, train=(replace(phase, steps=3),)), boxes(), seed=3)
    moved = (passes.rows["code.value"] != start.rows["code.value"]).any(1)
    assert moved.all()  # 11 boxes, 4 a step: three steps see each one


def test_gradients_of_a_row_do_not_depend_on_the_batch_and_shared_ones_are_means():
    """Batches of equal samples: the decoder moves as for one, for any batch size."""
    table = box_table(1, points=200).take([0] * 6)
    samples = load_samples(table, "shapes")
    method = decoder(train_steps=5, batch=1, prior=0.0)
    (phase,) = method.train
    frozen = replace(phase.updates[0], groups={"net.": Adam(1e-3)})
    results = []
    for batch in (2, 6):
        single = replace(phase, batch=batch, updates=(frozen,))
        results.append(train(replace(method, train=(single,)), samples, seed=3))
    assert equal(*results, atol=1e-6)


def test_wrong_shares_of_the_samples_are_refused():
    samples = load_samples(picture_table([(8, 8)]), "images")
    siren = methods.build("siren", methods.configure("siren"), samples.form)
    with pytest.raises(ValueError, match="nothing to train"):
        train(siren, samples, seed=0)
    method = decoder()
    (phase,) = method.train
    diverging = replace(
        phase,
        updates=(
            Descend(
                lambda b, x, d: {"sdf": b(x.points.coords).sum((1, 2)) * torch.nan}, {"": Adam(1.0)}
            ),
        ),
    )
    with pytest.raises(RuntimeError, match="diverged at step 0"):
        train(replace(method, train=(diverging,)), boxes(), seed=0)


def test_running_means_are_kept_as_the_result():
    method = decoder(train_steps=20)
    (phase,) = method.train
    (update,) = phase.updates
    averaged = replace(phase, updates=(replace(update, ema=0.9),))
    plain = train(method, boxes(), seed=3)
    mean = train(replace(method, train=(averaged,)), boxes(), seed=3)
    assert torch.equal(plain.rows["code.value"], mean.rows["code.value"])
    assert not torch.equal(plain.shared["net.layers.0.weight"], mean.shared["net.layers.0.weight"])


# --- the other types of method --------------------------------------------------------------


def field(samples, model):
    return Field(
        method="test",
        config=methods.configure("siren"),
        form=samples.form,
        model=model,
        read=lambda bound, coords: {"color": bound(coords)},
        layers=[],
        coords={},
        output={},
    )


def pixel_loss(bound, batch, draw):
    pixels = batch.grid
    return {"mse": color_mse(bound(pixels.coords), pixels.color * 2 - 1, pixels.weight)}


def tint_table(count, seed=0):
    """Flat 6 x 6 pictures whose color varies about one mean: what a start can learn."""
    table = picture_table([(6, 6)] * count, seed=seed).to_pylist()
    g = torch.Generator().manual_seed(seed)
    for line in table:
        color = (torch.tensor([200.0, 60.0, 100.0]) + 30 * torch.randn(3, generator=g)).clamp(
            0, 255
        )
        line["pixels"] = color.to(torch.uint8).expand(36, 3).contiguous().numpy().tobytes()
    return pa.Table.from_pylist(table)


@pytest.mark.parametrize(("order", "learned"), [(1, "none"), (2, "tensor"), (2, "parameter")])
def test_meta_learning_finds_a_start_from_which_few_steps_suffice(order, learned):
    samples = load_samples(tint_table(12), "images")
    model = MLP(2, sine_layers(2, 16, 1, 3))
    inner = Inner(pixel_loss, steps=2, rate=1e-2, size=Size(), learned=learned, order=order)
    outer = Phase(150, Size(), (Descend(pixel_loss, {"": Adam(1e-2)}),), batch=4)
    look = Phase(0, Size(), outer.updates)
    method = MetaLearned(field(samples, model), ("layers.",), inner, train=(outer,), fit=(look,))
    new = load_samples(tint_table(5, seed=9), "images")
    trained = train(method, samples, seed=0)
    assert {a.name for a in row_arrays(method)} >= {"params", "shared/start.layers.0.weight"}

    def error(method, shared):
        return fit_rows(method, shared, new, seed=0, lanes=3).loss.mean()

    adapted = error(method, trained.shared)
    assert adapted < 0.25 * error(method, start_shared(method, 0))
    stays = replace(method, inner=replace(inner, steps=0))
    assert adapted < (0.6 if learned != "none" else 0.9) * error(stays, trained.shared)
    one = load_samples(tint_table(5, seed=9).slice(3, 1), "images")
    alone = fit_rows(method, trained.shared, one, seed=0)
    fitted = fit_rows(method, trained.shared, new, seed=0, lanes=4)
    assert all(torch.equal(alone.rows[n][0], fitted.rows[n][3]) for n in fitted.rows)


def test_reptile_moves_the_start_to_where_the_inner_steps_end():
    """With a rate of 1 and one sample, all the way; with several, to the mean of their ends."""
    samples = load_samples(tint_table(4), "images")
    model = MLP(2, sine_layers(2, 16, 1, 3))
    inner = Inner(pixel_loss, steps=3, rate=3e-2, size=Size(), order=0)
    for count in (1, 4):
        outer = Phase(1, Size(), (Descend(pixel_loss, {"start.": Sgd(1.0)}),), batch=count)
        some = load_samples(tint_table(4).slice(0, count), "images")
        method = MetaLearned(field(samples, model), ("layers.",), inner, train=(outer,))
        trained = train(method, some, seed=0)
        ends = fit_rows(method, start_shared(method, 0), some, seed=0).rows
        for name, value in ends.items():
            torch.testing.assert_close(
                trained.shared[f"start.{name}"], value.mean(0), rtol=0, atol=1e-5
            )
        assert trained.log[0]["way"] > 0
    learned = replace(method, inner=replace(inner, learned="tensor"))
    with pytest.raises(ValueError, match=r"order 0 \(Reptile\) learn no rates"):
        train(learned, some, seed=0)


class Coded(nn.Module):
    """A color by code, an encoder that reads it off the pixels, and a critic."""

    def __init__(self):
        super().__init__()
        self.code = Latent((3,), std=0.0)
        self.decode = Linear(3, 3)
        self.encode = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
        self.critic = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, coords):
        color = self.decode(self.code().unsqueeze(-2))
        return color.expand(*coords.shape[:-1], 3)


def encode(bound, batch, draw):
    mean = batch.grid.color.mean(1) * 2 - 1
    code = bound.encode(mean)
    return {"code.value": code}, {"kl": 1e-4 * code.square().sum(1)}


def test_an_encoder_gives_rows_that_phases_of_fit_may_refine():
    samples = load_samples(tint_table(12), "images")
    phase = Phase(
        600, Size(), (Descend(pixel_loss, {"decode.": Adam(1e-2), "encode.": Adam(1e-2)}),), batch=6
    )
    method = Encoded(field(samples, Coded()), encode=encode, size=Size(), train=(phase,))
    trained = train(method, samples, seed=0)
    new = load_samples(tint_table(5, seed=9), "images")
    encoded = fit_rows(method, trained.shared, new, seed=0, lanes=3)

    def error(rows):
        bound = bind(method.model, bindable(method, trained.shared, rows))
        batch = new.draw(torch.arange(5), "query", Size(), Draw.of(new.keys, seed=0, stage="q"))
        return pixel_loss(bound, batch, None)["mse"]

    swapped = {"code.value": encoded.rows["code.value"].roll(1, 0)}
    assert error(encoded.rows).mean() < 0.3 * error(swapped).mean()
    refine = Phase(100, Size(), (Descend(pixel_loss, {"code.": Adam(1e-2)}),))
    refined = fit_rows(replace(method, fit=(refine,)), trained.shared, new, seed=0, lanes=3)
    assert error(refined.rows).mean() < 0.5 * error(encoded.rows).mean()


def test_two_players_are_two_updates_of_one_phase():
    """A generator of colors against a critic: generated means come to the data's."""
    samples = load_samples(tint_table(24), "images")

    def judge(bound, batch, draw):
        real, fake = batch.grid.color[:, 0] * 2 - 1, bound(batch.grid.coords[:, :1])[:, 0].detach()
        gap = bound.critic(real) - bound.critic(fake)
        return {"critic": nn.functional.softplus(-gap)[:, 0]}

    def fool(bound, batch, draw):
        fake = bound(batch.grid.coords[:, :1])[:, 0]
        return {"fool": nn.functional.softplus(-bound.critic(fake))[:, 0]}

    def prior(bound, draw):
        return {"code.value": draw.normal("z", 3)}

    updates = (
        Descend(judge, {"critic.": Adam(1e-2, betas=(0.5, 0.9))}),
        Descend(fool, {"decode.": Adam(1e-2, betas=(0.5, 0.9))}, every=2),
    )
    invert = Phase(150, Size(), (Descend(pixel_loss, {"code.": Adam(3e-2)}),))
    method = Adversarial(
        field(samples, Coded()),
        prior=prior,
        train=(Phase(400, Size(), updates, batch=12),),
        fit=(invert,),
    )
    mean = torch.tensor([200.0, 60.0, 100.0]) / 127.5 - 1
    before, after = start_shared(method, 0), train(method, samples, seed=0).shared
    gaps = [(s["decode.bias"] - mean).norm() for s in (before, after)]
    assert gaps[1] < 0.4 * gaps[0]
    fitted = fit_rows(method, after, samples, seed=0, lanes=4)
    assert fitted.rows["code.value"].shape == (24, 3)
    still = replace(method, fit=(replace(invert, steps=0),))
    assert fitted.loss.mean() < 0.5 * fit_rows(still, after, samples, seed=0, lanes=4).loss.mean()
