"""CPPN: pictures from graphs of mixed activations, evolved or dense (Stanley 2007, "Compositional
Pattern Producing Networks: A Novel Abstraction of Development").

For pictures with symmetry and repetition in few numbers, and for search without gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Stanley 2007, Genetic Programming and Evolvable Machines 8(2)"
KINDS = ("images",)
STRATEGY = "per sample"
STORES = (
    "latents/graph.*: weights, edges, activations of a population of graphs (the best first); "
    "params: weights of a dense network"
)
Input = Literal["x", "y", "radius"]
Function = Literal["sigmoid", "tanh", "gaussian", "sine", "absolute", "identity", "relu"]


class Config(Schema):
    """Defaults: evolves a graph for each small picture in some seconds, then descends on it."""

    mode: Literal["evolved", "dense"] = "evolved"
    """A graph that grows (NEAT), then follows the gradient; or layers of mixed units."""
    inputs: tuple[Input, ...] = ("x", "y", "radius")
    """What a network sees of a point, beside a constant; (radius,) alone gives round patterns."""
    aspect: float = Field(1.0, gt=0)
    """Width over height of the pictures: circles are round at the right one."""
    scale: float = Field(1.0, gt=0)
    """Factor on coordinates (dense art: 8)."""
    functions: tuple[Function, ...] = (
        "sigmoid",
        "tanh",
        "gaussian",
        "sine",
        "absolute",
        "identity",
        "relu",
    )
    """dense: the activations of a layer's units, in turn; an evolved graph has all of them."""
    width: int = Field(28, ge=1)
    """dense: units of a layer."""
    depth: int = Field(4, ge=1)
    """dense: hidden layers."""
    std: float = Field(1.0, gt=0)
    """dense: standard deviation of weights times the square root of a layer's inputs (art: all
    weights N(0, 1), so the square root of the width)."""
    population: int = Field(32, ge=4)
    """evolved: graphs a sample (usual with NEAT: 250)."""
    capacity: int = Field(20, ge=5)
    """evolved: nodes that a graph can have."""
    generations: int = Field(150, ge=1)
    """evolved: steps of evolution."""
    pixels: int = Field(256, ge=1)
    """evolved: pixels that a generation is judged by."""
    steps: int = Field(300, ge=0)
    """Steps along the gradient: of a dense network, or of the best graph after evolution."""
    rate: float = Field(1e-2, gt=0)
    """Learning rate of Adam."""

    @field_validator("inputs", "functions")
    @classmethod
    def _some(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given or len(set(given)) != len(given):
            raise ValueError("at least one, and none twice")
        return given

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: a population of 250 as usual with NEAT (the paper's pictures were picked by
        hand, it has no table); `art`: the dense random patterns that are popular."""
        art = {"mode": "dense", "scale": 8.0, "width": 32, "std": 5.7, "functions": ("tanh",)}
        return {
            "default": cls(),
            "paper": cls(population=250, generations=1000, capacity=64, steps=0),
            "art": cls(**art),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A graph, or layers, from (x, y, radius, 1) to the channels of an image, in [0, 1]."""
    import math
    from itertools import pairwise

    from pipeline.fields.activations import Sigmoid
    from pipeline.fields.evolution import first_population, generation
    from pipeline.fields.graph import Graph, Mixed, PatternField, evaluate_graphs
    from pipeline.fields.initializers import Normal
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting.method import Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine
    from pipeline.objectives.photometric import color_mse
    from pipeline.samples import ALL, Size

    if form.kind not in KINDS:
        raise ValueError(f"cppn fits images; this dataset has {form.kind}")
    count = len(config.inputs) + 1

    def layer(into: int, out: int, activation) -> Layer:
        rule = Normal(config.std / math.sqrt(into))
        return Layer(out, activation, start={"weight": rule, "bias": rule})

    if config.mode == "dense":
        widths = [count, *[config.width] * config.depth]
        layers = [layer(a, b, Mixed(config.functions)) for a, b in pairwise(widths)]
        net = MLP(count, [*layers, layer(widths[-1], form.channels, Sigmoid())])
    else:
        net = Graph(count, form.channels, config.population, config.capacity)
    model = PatternField(net, config.inputs, aspect=config.aspect, scale=config.scale)

    def loss(bound, batch, draw):
        pixels = batch.grid
        return {"mse": color_mse(bound(pixels.coords), pixels.color, pixels.weight)}

    def read(bound, coords):
        return {"color": bound(coords)}

    def genes(rows):
        return {name.split(".")[1]: value for name, value in rows.items()}

    def named(rows):
        return {f"graph.{name}.value": value for name, value in rows.items()}

    def found(bound, rows, batch, draw):
        return named(first_population(net, draw))

    def evolve(bound, rows, batch, draw):
        pixels = batch.grid
        inputs = model.inputs_of(pixels.coords)

        def fitness(genes):
            color = evaluate_graphs(
                inputs,
                genes["weight"],
                genes["enabled"],
                genes["function"],
                genes["place"],
                form.channels,
            )
            error = (color - pixels.color[:, None]).square().mean(-1) * pixels.weight[:, None]
            return -error.sum(-1) / pixels.weight.sum(-1, keepdim=True)

        return named(generation(net, genes(rows), fitness, draw))

    phases = []
    if config.mode == "evolved":
        phases.append(
            Phase(
                steps=config.generations,
                size=Size(pixels=config.pixels),
                updates=(Descend(loss, {}),),
                edits=((1, evolve),),
                enter=found,
            )
        )
    if config.steps:
        rate = Cosine(config.rate, config.steps, floor=config.rate / 100)
        moved = "graph.weight" if config.mode == "evolved" else "net."
        phases.append(
            Phase(
                steps=config.steps,
                size=Size(pixels=ALL, most=2048),
                updates=(Descend(loss, {moved: Adam(rate)}),),
            )
        )
    field = Field(
        method="cppn",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return PerSample(field, fit=tuple(phases))
