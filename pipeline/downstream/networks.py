"""Networks that denoise a row at a time and, where there are labels, for a class: residual layers
for vectors, a U-Net for grids, a transformer for weights and other lists of tokens.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.codes import Space
from schemas.downstream import Network


class Condition(nn.Module):
    """One vector of the time in [0, 1] and the class; a hidden class has an entry of its own."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.classes = classes
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, time: Float[Tensor, "n"], labels: Int[Tensor, "n"]) -> Float[Tensor, "n w"]:
        """labels: -1 = hidden, or none."""
        half = self.width // 2
        steps = torch.arange(half, device=time.device, dtype=torch.float32) / max(half - 1, 1)
        angle = time[:, None] * 1000 * torch.exp(-math.log(10_000.0) * steps)
        waves = F.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, self.width % 2))
        found = self.time(waves)
        if self.label is not None:
            found = found + self.label(torch.where(labels < 0, self.classes, labels))
        return found


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with weights of zero: what it is added to starts unchanged."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _Modulated(nn.Module):
    """A normalized residual layer whose scale, shift and gate come from the condition.

    Gates begin at one: behind gates of zero (DiT) and a last layer of zeros nothing has a slope
    once the linear part is known, and training stands still.
    """

    def __init__(self, width: int, inner: nn.Module, axis: int):
        super().__init__()
        self.inner, self.axis = inner, axis
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(F.silu(condition)).chunk(3, -1)
        gate = 1 + gate
        if self.axis:
            scale, shift, gate = scale[:, None], shift[:, None], gate[:, None]
        return x + gate * self.inner(self.norm(x) * (1 + scale) + shift)


class ResidualMLP(nn.Module):
    """Residual layers on a vector; weights begin as large as keeps the variance (He et al. 2015):
    smaller ones make features that are nearly linear, from which nothing new is learned."""

    def __init__(self, size: int, config: Network, classes: int):
        super().__init__()
        width = config.width
        self.condition = Condition(width, classes)
        self.first = nn.Linear(size, width)
        self.blocks = nn.ModuleList(
            _Modulated(
                width,
                nn.Sequential(
                    nn.Linear(width, width),
                    nn.SiLU(),
                    nn.Dropout(config.dropout),
                    nn.Linear(width, width),
                ),
                0,
            )
            for _ in range(config.depth)
        )
        for layer in (self.first, *(inner for block in self.blocks for inner in block.inner)):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, size))

    def forward(
        self, x: Float[Tensor, "n d"], time: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n d"]:
        condition = self.condition(time, labels)
        h = self.first(x) + condition
        for block in self.blocks:
            h = block(h, condition)
        return self.last(self.norm(h))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n t w"]) -> Float[Tensor, "n t w"]:
        n, t, w = x.shape
        q, k, v = self.mix(x).reshape(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(found.transpose(1, 2).reshape(n, t, w))


class Transformer(nn.Module):
    """Blocks of attention over tokens with learned places (HyperDiffusion, Erkoc et al. 2023).

    Tokens of weights are tensors, or pieces of them, each with projections of its own; those of a
    grid are its positions and share theirs.
    """

    def __init__(self, config: Network, classes: int, *, sizes: list[int] | None, channels: int,
                 positions: int):  # fmt: skip
        super().__init__()
        width, heads = config.width, config.heads
        if width % heads:
            raise ValueError(f"method.width {width} is not a multiple of method.heads {heads}")
        self.sizes = sizes
        tokens, entries = (len(sizes), max(sizes)) if sizes else (positions, channels)
        if sizes:
            bound = 1 / math.sqrt(entries)
            self.into = nn.Parameter(torch.rand(tokens, entries, width) * 2 * bound - bound)
            self.outof = nn.Parameter(torch.zeros(tokens, width, entries))
            kept = torch.arange(entries)[None] < torch.tensor(sizes)[:, None]
            self.register_buffer("kept", kept, persistent=False)
        else:
            self.into_shared = nn.Linear(entries, width)
            self.out_shared = zeroed(nn.Linear(width, entries))
        self.place = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(tokens, entries))
        self.condition = Condition(width, classes)
        self.blocks = nn.ModuleList()
        for _ in range(config.depth):
            wide = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(config.dropout),
                nn.Linear(4 * width, width),
            )  # fmt: skip
            attend = _Attention(width, heads, config.dropout)
            self.blocks += [_Modulated(width, attend, 1), _Modulated(width, wide, 1)]
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "n *shape"], time: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n *shape"]:
        condition = self.condition(time, labels)
        if self.sizes:
            tokens = x.new_zeros(len(x), *self.kept.shape)
            tokens[:, self.kept] = x
            h = torch.einsum("nts,tsw->ntw", tokens, self.into)
        else:
            h = self.into_shared(x.reshape(len(x), -1, x.shape[-1]))
        h = h + self.place + condition[:, None]
        for block in self.blocks:
            h = block(h, condition)
        h = self.norm(h)
        if self.sizes:
            out = torch.einsum("ntw,tws->nts", h, self.outof.to(h.dtype)) + self.bias
            return out[:, self.kept]
        return (self.out_shared(h) + self.bias).reshape(x.shape)


class _Convolution(nn.Module):
    """Two convolutions with a condition between them, added to the input."""

    def __init__(self, inputs: int, outputs: int, condition: int, dropout: float):
        super().__init__()
        self.norm_1 = nn.GroupNorm(math.gcd(8, inputs), inputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.norm_2 = nn.GroupNorm(math.gcd(8, outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.modulation(F.silu(condition))[..., None, None].chunk(2, 1)
        h = self.norm_2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv_2(self.dropout(F.silu(h)))


class UNet(nn.Module):
    """A small U-Net over a grid [h, w, c], attention at its coarsest level."""

    def __init__(self, shape: tuple[int, ...], config: Network, classes: int):
        super().__init__()
        height, width, channels = shape
        most = int(math.log2(math.gcd(height, width) & -math.gcd(height, width))) + 1
        levels = min(config.depth, most)
        wide = [config.width * min(2**level, 4) for level in range(levels)]
        self.condition = Condition(4 * config.width, classes)
        made = [4 * config.width, config.dropout]
        self.first = nn.Conv2d(channels, wide[0], 3, padding=1)
        self.place = nn.Parameter(torch.zeros(1, wide[0], height, width))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.less, self.more = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            before = wide[max(level - 1, 0)]
            self.down.append(_Convolution(before, wide[level], *made))
            last = level == levels - 1
            self.less.append(nn.Identity() if last else nn.AvgPool2d(2))
        self.middle_1 = _Convolution(wide[-1], wide[-1], *made)
        self.attend = _Attention(wide[-1], math.gcd(config.heads, wide[-1]), config.dropout)
        self.attend_norm = nn.LayerNorm(wide[-1])
        self.middle_2 = _Convolution(wide[-1], wide[-1], *made)
        for level in reversed(range(levels)):
            after = wide[max(level - 1, 0)]
            self.up.append(_Convolution(2 * wide[level], after, *made))
            self.more.append(nn.Upsample(scale_factor=2) if level else nn.Identity())
        self.norm = nn.GroupNorm(math.gcd(8, wide[0]), wide[0])
        self.last = zeroed(nn.Conv2d(wide[0], channels, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "n h w c"], time: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Float[Tensor, "n h w c"]:
        condition = self.condition(time, labels)
        h = self.first(x.movedim(-1, 1)) + self.place
        passed = []
        for block, less in zip(self.down, self.less):
            h = block(h, condition)
            passed.append(h)
            h = less(h)
        h = self.middle_1(h, condition)
        flat = h.flatten(2).transpose(1, 2)
        flat = flat + self.attend(self.attend_norm(flat))
        h = self.middle_2(flat.transpose(1, 2).reshape(h.shape), condition)
        for block, more in zip(self.up, self.more):
            h = more(block(torch.cat([h, passed.pop()], 1), condition))
        return self.last(F.silu(self.norm(h))).movedim(1, -1)


def weight_tokens(space: Space, most: int) -> list[int]:
    """Sizes of the tokens that a row of weights is cut into: its tensors, large ones in pieces."""
    sizes: list[int] = []
    for name, offset, shape in space.tensors:
        if offset != sum(sizes):
            raise ValueError(f"tensor '{name}' begins at {offset}, not where the last one ended")
        left = math.prod(shape)
        pieces = -(-left // most)
        for piece in range(pieces):
            sizes.append(left // (pieces - piece))
            left -= sizes[-1]
    return sizes


def build_network(config: Network, space: Space, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of a method for rows of a space.

    Args:
        shape: Of a row as it is learned: the space's own, or principal components of it.
    """
    kind = config.network
    whitened = shape != space.shape
    if kind == "auto":
        if whitened or space.kind == "vector":
            kind = "mlp"
        else:
            kind = "unet" if space.kind == "grid" and len(shape) == 3 else "transformer"
    if kind == "mlp":
        return _Flattened(ResidualMLP(math.prod(shape), config, classes), shape)
    if whitened:
        raise ValueError(
            f"method.network: {kind} needs rows as they are stored; principal components "
            "(method.normalize: whiten) have no places: use mlp, or another normalize"
        )
    if kind == "unet":
        if len(shape) != 3:
            raise ValueError(
                f"method.network: unet needs grids [h, w, c]; '{space.array}' has rows of shape "
                f"{list(shape)}: use transformer or mlp"
            )
        return UNet(shape, config, classes)
    if space.kind == "vector":
        raise ValueError(
            f"method.network: transformer needs tokens; '{space.array}' holds plain vectors of "
            f"{space.size}: use mlp"
        )
    if space.kind == "weights":
        sizes = weight_tokens(space, config.token)
        return Transformer(config, classes, sizes=sizes, channels=0, positions=0)
    return Transformer(
        config, classes, sizes=None, channels=shape[-1], positions=math.prod(shape[:-1])
    )


class _Flattened(nn.Module):
    """A network of vectors for rows of any shape."""

    def __init__(self, inner: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return self.inner(x.flatten(1), time, labels).reshape(len(x), *self.shape)
