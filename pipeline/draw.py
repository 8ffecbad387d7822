"""Randomness as a function of (run seed, sample id, stage, step, tag), never of a place in a batch.

A counter-based hash (the finalizer of splitmix64, Steele et al. 2014) in wrapping int64 arithmetic:
equal on every device, for any order of samples and any number of lanes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLY_1 = 0xBF58476D1CE4E5B9 - 2**64
MULTIPLY_2 = 0x94D049BB133111EB - 2**64
SHARED = "<shared>"
"""Stands for the sample id where something is drawn once for all samples."""


@torch.compiler.assume_constant_result
def word(text: str) -> int:
    """64 bits of blake2b of a text, as a signed integer."""
    return _word(text)


@lru_cache(maxsize=4096)
def _word(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True
    )


def sample_keys(ids: Sequence[str]) -> Int[Tensor, "n"]:
    """One 64-bit key for each sample id."""
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return torch.tensor(
        [int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64
    )


def scramble(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Finalizer of splitmix64: a bijection of 64-bit words; `x` is overwritten."""
    x.bitwise_xor_((x >> 30).bitwise_and_(2**34 - 1)).mul_(MULTIPLY_1)
    x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(MULTIPLY_2)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


@dataclass(frozen=True)
class Draw:
    """Who draws, and when: one key and one step for each sample of a batch."""

    keys: Int[Tensor, "n"]
    """Hash of run seed, stage and sample id."""
    step: Int[Tensor, "n"]
    """Each sample's own step, from 0."""

    @classmethod
    def of(cls, samples: Int[Tensor, "n"], *, seed: int, stage: str) -> Draw:
        """The draw of samples with these keys (`sample_keys`) at step 0 of a stage."""
        run = word(f"{seed}/{stage}")
        return cls(scramble(scramble(samples ^ run) + GOLDEN), torch.zeros_like(samples))

    @classmethod
    def once(cls, *, seed: int, stage: str) -> Draw:
        """The draw of something that all samples share (n = 1)."""
        return cls.of(sample_keys([SHARED]), seed=seed, stage=stage)

    def at(self, step: Int[Tensor, "n"]) -> Draw:
        """The same samples at another step."""
        return Draw(self.keys, step)

    def bits(self, tag: str, *shape: int) -> Int[Tensor, "n *shape"]:
        """Uniform 64-bit words."""
        start = scramble(self.keys + self.step * GOLDEN)
        start = scramble(start.bitwise_xor_(word(tag)))
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, device=start.device) * GOLDEN
        return scramble(start[:, None] + counter).reshape(len(start), *shape)

    def uniform(
        self, tag: str, *shape: int, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n *shape"]:
        """Uniform in [0, 1), multiples of 2**-24."""
        top = (self.bits(tag, *shape) >> 40).bitwise_and_(2**24 - 1)
        return top.to(dtype).mul_(2.0**-24)

    def normal(
        self, tag: str, *shape: int, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n *shape"]:
        """Standard normal, by Box and Muller from two uniforms in float64."""
        words = self.bits(tag, *shape)
        radius = ((words >> 32).bitwise_and_(2**32 - 1).double().add_(1)).mul_(2.0**-32)
        angle = words.bitwise_and(2**32 - 1).double().mul_(2.0**-32 * 2 * math.pi)
        return radius.log_().mul_(-2).sqrt_().mul_(angle.cos_()).to(dtype)

    def integers(
        self, tag: str, high: int | Int[Tensor, "n"], *shape: int
    ) -> Int[Tensor, "n *shape"]:
        """Integers in [0, high), `high` below 2**31 and possibly another one for each sample."""
        words = (self.bits(tag, *shape) >> 32).bitwise_and_(2**32 - 1)
        if isinstance(high, Tensor):
            high = high.reshape(-1, *(1 for _ in shape))
        return (words * high) >> 32
