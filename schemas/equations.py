"""What a boundary value problem of a dataset is, as its file says it."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from schemas.base import Schema

Equation = Literal["helmholtz", "wave"]
LAYER = 0.5
"""Share of a Helmholtz field's box [-1, 1]^d, from each side, that is absorbing layer (SIREN's
code): what a file calls its domain is |x| <= 1 - LAYER of it."""
LEAST_PHASE = 2.0
"""Radians from the center of the domain to its side: with less, the layer sends back more than a
thousandth of a wave."""


HUGE = 1e50
"""Largest number of a problem, and its inverse the smallest of those above 0: their powers and
quotients can be computed with."""


def _no_claim(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


Claim = BeforeValidator(_no_claim)
Number = Annotated[float, Claim, Field(ge=-HUGE, le=HUGE)]
"""A text may hold it: to YAML 1e-3 is one."""
Positive = Annotated[float, Claim, Field(gt=0, le=HUGE)]


class Source(Schema):
    """A Gaussian: of a Helmholtz equation its source, of a wave equation where it starts."""

    at: tuple[Number, ...]
    """Center, one number an axis, inside the domain."""
    variance: Positive
    """Square of the standard deviation along each axis, in squared units of the domain."""
    amplitude: Number | tuple[Number, Number] = 1.0
    """Helmholtz: its integral, complex as (real, imaginary). Wave: the height of its peak."""


class Problem(Schema):
    """One equation in the box |x_i| <= domain, open at its sides: waves leave."""

    equation: Equation
    dimension: Literal[1, 2]
    """Axes of space."""
    domain: Positive = 1.0
    """Half width of the box."""
    sources: tuple[Source, ...] = Field(min_length=1)
    speed: Number | tuple[Number, ...] | tuple[tuple[Number, ...], ...] = 1.0
    """Of waves: one number, or its values at evenly spaced nodes from one side of the box to the
    other (first axis x), linear in between and constant beyond. Helmholtz: relative, the wave
    number at a place is wavenumber / speed."""
    wavenumber: Positive | None = None
    """Helmholtz: k in laplacian(u) + (k / speed)^2 u = source, in radians a unit."""
    duration: Positive | None = None
    """Wave: u_tt = speed^2 laplacian(u) from t = 0, at rest, to here."""

    @field_validator("speed")
    @classmethod
    def _speeds(cls, speed: Any) -> Any:
        values = flat(speed)
        wrong = [v for v in values if not v > 0]
        if wrong:
            raise ValueError(f"a speed is {wrong[0]:g}; all must be above 0")
        if min(values) < 1 / HUGE:
            raise ValueError(f"a speed is {min(values):g}; {1 / HUGE:g} is the least")
        if isinstance(speed, tuple) and len(speed) < 2:
            raise ValueError("a grid of speeds needs at least 2 nodes an axis")
        rows = speed if isinstance(speed, tuple) else ()
        if len({len(row) for row in rows if isinstance(row, tuple)}) > 1:
            raise ValueError("the rows of speeds differ in length")
        return speed

    @model_validator(mode="after")
    def _is_whole(self) -> Problem:
        needed, other = "wavenumber", "duration"
        if self.equation == "wave":
            needed, other = other, needed
        if getattr(self, needed) is None:
            raise ValueError(f"{needed}: is missing; a {self.equation} equation needs it")
        if getattr(self, other) is not None:
            raise ValueError(
                f"{other}: {getattr(self, other):g} means nothing to a {self.equation} equation"
            )
        for name in ("domain", "wavenumber", "duration"):
            value = getattr(self, name)
            if value is not None and value < 1 / HUGE:
                raise ValueError(f"{name}: {value:g}; {1 / HUGE:g} is the least")
        for i, source in enumerate(self.sources):
            if source.variance < 1 / HUGE:
                raise ValueError(
                    f"sources.{i}.variance: {source.variance:g}; {1 / HUGE:g} is the least"
                )
            if len(source.at) != self.dimension:
                raise ValueError(
                    f"sources.{i}.at: {list(source.at)} has {len(source.at)} numbers; the "
                    f"dimension is {self.dimension}"
                )
            if any(abs(x) > self.domain for x in source.at):
                raise ValueError(
                    f"sources.{i}.at: {list(source.at)} is outside the domain, "
                    f"|x| <= {self.domain:g}"
                )
            if self.equation == "wave" and isinstance(source.amplitude, tuple):
                raise ValueError(
                    f"sources.{i}.amplitude: {list(source.amplitude)} is complex; the start of a "
                    "wave is real"
                )
        if all(v == 0 for source in self.sources for v in flat(source.amplitude)):
            raise ValueError("sources: every amplitude is 0, the answer would be nothing")
        if isinstance(self.speed, tuple):
            axes = 2 if isinstance(self.speed[0], tuple) else 1
            if axes != self.dimension:
                raise ValueError(f"speed: a grid of {axes} axes; the dimension is {self.dimension}")
        if self.equation == "wave":
            reach = self.duration * max(flat(self.speed))
            if reach >= self.domain:
                raise ValueError(
                    f"duration: {self.duration:g} at speeds up to {max(flat(self.speed)):g} "
                    f"reaches {reach:g}, through the whole domain ({self.domain:g}): nothing there "
                    "would follow from the start; take a shorter one, or a larger domain"
                )
        elif self.least_phase < LEAST_PHASE:
            raise ValueError(
                f"wavenumber: {self.wavenumber:g} / speed in a domain of {self.domain:g} is "
                f"{self.least_phase:g} radians from its center to its side, too few for the "
                f"absorbing layer; {LEAST_PHASE:g} are the least: take a larger domain"
            )
        return self

    @property
    def least_phase(self) -> float:
        """Radians of a Helmholtz wave along half the box, where it is fastest."""
        return self.wavenumber * self.domain / max(flat(self.speed))


def flat(value: Any) -> list[float]:
    """The numbers of a nested tuple."""
    return [x for part in value for x in flat(part)] if isinstance(value, tuple) else [value]


def read_problem(text: bytes, yaml: bool) -> Problem:
    """The problem in the bytes of a JSON or YAML file.

    Raises:
        ValueError: it is none; the message names the key and its value.
    """
    try:
        found = _parse(text, yaml)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a readable {'YAML' if yaml else 'JSON'} file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"holds a {type(found).__name__}; a problem is a mapping of keys to values"
        )
    equation = found.get("equation")
    if equation not in get_args(Equation):
        said = "is missing" if "equation" not in found else f"{equation!r} is not known"
        raise ValueError(f"equation: {said}; there are {', '.join(get_args(Equation))}")
    try:
        return Problem.model_validate(found)
    except ValidationError as error:
        errors = error.errors()
        # What is wrong inside of a tuple also makes it too short, and of another type.
        deeper = [e for e in errors if e["type"] not in ("too_short", "tuple_type")]
        raise ValueError("; ".join(_words(e) for e in (deeper or errors)[:3])) from None


def _parse(text: bytes, yaml: bool) -> Any:
    if yaml:
        import yaml as reader

        try:
            return reader.safe_load(text.decode())
        except reader.YAMLError as error:
            raise ValueError(" ".join(str(error).split())[:200]) from error
    return json.loads(text.decode(), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' is there twice")
    return found


def _words(error: Any) -> str:
    """One error of pydantic: key, value, reason."""
    types = ("float", "tuple[", "constrained-float", "function-")  # branches of a union
    place = ".".join(str(p) for p in error["loc"] if not str(p).startswith(types))
    reason = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    plain = isinstance(value, str | int | float)
    if error["type"] == "missing":
        return f"{place}: is missing"
    if error["type"] == "extra_forbidden":
        return f"{place}: {value!r} is no key of a problem"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place}: {value} is not a number"
    value = str(value)[:40] + "..." if isinstance(value, int) and value > HUGE else repr(value)
    return f"{place}: {value}: {reason}" if place and plain else f"{place}: {reason}".lstrip(": ")
