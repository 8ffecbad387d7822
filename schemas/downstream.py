"""Run files of what is trained on a finished store: priors and latent GANs; parts for others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import Location, Schema, identity
from schemas.run import Resources, Run

Split = Literal["train", "val", "test"]
Bound = float | int | None


class Source(Location):
    """Rows of a finished store that a downstream job reads; a bare string is its URL, or the run
    file that makes it (`*.yaml`)."""

    run: str | None = None
    """Run file that makes the store when it is absent; without `url`, its store is meant."""
    array: str | None = None
    """`params`, `latents/<name>` or a latent's name; absent: the only latent, else `params`."""
    split: tuple[Split, ...] = ("train",)
    """Splits that are learned from."""
    label: tuple[str, ...] = ()
    """Only rows of these classes; empty = all."""
    where: dict[str, tuple[Bound, Bound] | bool | int | float | str] = {}
    """Bounds [lowest, highest] on columns of the store, e.g. `{psnr: [30, null]}`, or a value."""
    resident_bytes: int = Field(2**30, ge=0)
    """Rows up to this size are kept in memory; more are streamed shard by shard."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"run": value} if value.endswith((".yaml", ".yml")) else {"url": value}
        return value

    def learning_keys(self) -> dict[str, Any]:
        """The keys that decide which rows are read."""
        full = self.model_dump(mode="json")
        return {name: full[name] for name in ("array", "split", "label", "where")}


class Learning(Schema):
    """Training of a network on rows of a store."""

    steps: int = Field(3_000, ge=1)
    """Optimization steps."""
    batch: int = Field(256, ge=1)
    """Rows a step, over all workers."""
    rate: float = Field(1e-3, gt=0)
    """Learning rate of AdamW at its highest."""
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(100, ge=0)
    """Steps over which the rate rises."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to a hundredth over `steps`, or stays."""
    clip: float | None = Field(1.0, gt=0)
    """Longest gradient; absent: as it is."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged parameters that are used afterwards; 0: the last ones."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: the network computes in bfloat16 where torch.autocast allows."""
    checkpoint_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    previews: int = Field(3, ge=0)
    """Pictures of decoded samples during training, evenly spaced."""

    def learning_keys(self) -> dict[str, Any]:
        kept = self.model_dump(mode="json")
        return {k: v for k, v in kept.items() if k not in ("checkpoint_s", "previews")}


class Computing(Resources):
    """Where a downstream job computes; never changes a result beyond rounding."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Data-parallel Ray Train workers; 0: in this process, without Ray."""


# --- methods --------------------------------------------------------------------------------


class Conditional(Schema):
    """Keys of every generative method."""

    conditional: bool | None = None
    """Learn each class of the labels; absent: when every row has a label and there are several."""
    normalize: Literal["auto", "entries", "channels", "whole", "whiten", "none"] = "auto"
    """What rows are divided by, after their mean is taken away: the standard deviation of each
    entry, of each channel (the last axis), of everything; `whiten`: principal components of unit
    variance; auto: entries, of grids channels."""
    components: int | None = Field(None, ge=1)
    """With `whiten`: principal components kept; absent: as many as the rows can tell apart."""


class Gaussian(Conditional):
    """Normal distributions: the honest baseline, and with `components > 1` more than that."""

    name: Literal["gaussian"] = "gaussian"
    mixture: int = Field(1, ge=1)
    """Normal distributions in the mixture; of a conditional one, for each class."""
    covariance: Literal["full", "diagonal"] = "full"
    iterations: int = Field(100, ge=1)
    """Most rounds of expectation and maximization."""
    restarts: int = Field(3, ge=1)
    """Fits from other starts; the likeliest is kept."""


class Flow(Conditional):
    """Normalizing flow of rational-quadratic splines (Durkan et al. 2019), through zuko."""

    name: Literal["flow"] = "flow"
    transforms: int = Field(4, ge=1)
    """Transformations, each of all entries."""
    width: int = Field(128, ge=1)
    depth: int = Field(2, ge=1)
    """Hidden layers of the network of a transformation."""
    bins: int = Field(8, ge=2)
    """Pieces of a spline."""
    passes: int | None = Field(2, ge=2)
    """2: coupling, which samples fast; absent: autoregressive, as many passes as entries."""


class Network(Conditional):
    """Keys of methods that learn to denoise."""

    network: Literal["auto", "mlp", "unet", "transformer"] = "auto"
    """auto: `mlp` for vectors, `unet` for grids [h, w, c], `transformer` for weights and others."""
    width: int = Field(256, ge=4)
    """Units of a layer; of the U-Net channels at full resolution."""
    depth: int = Field(4, ge=1)
    """Residual blocks; of the U-Net levels, each half as large."""
    heads: int = Field(4, ge=1)
    """Attention heads of a transformer."""
    token: int = Field(512, ge=1)
    """Most entries of a weight tensor in one token (HyperDiffusion: one token a tensor)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    start: Literal["auto", "normal", "none"] = "auto"
    """`normal`: the network learns what to add to the best answer for a normal distribution of the
    rows; `none`: it learns the whole answer; auto: normal, for rows of up to 4,096 entries."""
    label_dropout: float = Field(0.1, ge=0, le=1)
    """Share of labels hidden in training, for classifier-free guidance (Ho and Salimans 2022)."""


class Diffusion(Network):
    """Denoising diffusion (Ho et al. 2020), sampled by DDIM (Song et al. 2021)."""

    name: Literal["ddpm"] = "ddpm"
    times: int = Field(200, ge=2)
    """Noise levels (Ho et al. and functa: 1,000; HyperDiffusion: 500)."""
    betas: tuple[float, float] = (1e-4, 0.04)
    """Least and greatest variance added (Ho et al.: 1e-4 and 0.02 at 1,000 levels)."""

    @field_validator("betas")
    @classmethod
    def _betas_are_variances(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not 0 < betas[0] <= betas[1] < 1:
            raise ValueError(f"{list(betas)} must ascend, above 0 and below 1")
        return betas

    predict: Literal["noise", "x0", "velocity"] = "noise"
    """What the network gives: the noise (Ho et al.), the clean row (HyperDiffusion), or their
    mixture (Salimans and Ho 2022)."""


class RectifiedFlow(Network):
    """Straight paths from noise to rows (Liu et al. 2022; flow matching, Lipman et al. 2022)."""

    name: Literal["rectified_flow"] = "rectified_flow"
    times: Literal["uniform", "logit_normal"] = "uniform"
    """How training draws times (logit_normal: Esser et al. 2024)."""


class WassersteinGan(Conditional):
    """Latent GAN of IM-NET (Chen and Zhang 2019) with a gradient penalty (Gulrajani et al. 2017).

    Departures from the released code: codes are standardized and the generator's output is linear
    (theirs is a sigmoid, as are their codes); one interpolation weight a sample, not a batch; five
    critic steps (theirs: one, which loses the rarer modes).
    """

    name: Literal["wgan_gp"] = "wgan_gp"
    noise: int | None = Field(None, ge=1)
    """Entries of the noise; absent: as many as a row has (IM-NET)."""
    noise_std: float = Field(1.0, gt=0)
    """Standard deviation of the noise (IM-NET: 0.2, for codes in [0, 1])."""
    width: int = Field(128, ge=1)
    """Units of a hidden layer of both networks (IM-NET: 2,048)."""
    depth: int = Field(2, ge=1)
    """Hidden layers of both networks."""
    critic_steps: int = Field(5, ge=1)
    """Steps of the critic for each of the generator."""
    penalty: float = Field(10.0, ge=0)
    """Weight of (|gradient of the critic| - 1)^2."""
    momentum: tuple[float, float] = (0.5, 0.9)
    """Adam's decays (IM-NET: 0.5; Gulrajani et al.: 0.9 for the second)."""


METHODS = {
    "gaussian": Gaussian,
    "flow": Flow,
    "ddpm": Diffusion,
    "rectified_flow": RectifiedFlow,
}
PriorMethod = Annotated[
    Gaussian | Flow | Diffusion | RectifiedFlow | WassersteinGan, Field(discriminator="name")
]


class Sampling(Schema):
    """What is drawn from a trained prior."""

    count: int = Field(64, ge=1)
    """Samples, each a row of the job's store."""
    classes: tuple[str, ...] = ()
    """Of a conditional prior: classes in turn; empty: as frequent as in the rows learned from."""
    guidance: float = Field(1.0, ge=0)
    """Weight of the condition, 1 = as learned (Ho and Salimans 2022: 1 + w); ddpm and
    rectified_flow only."""
    steps: int = Field(50, ge=1)
    """Steps of the sampler of ddpm (at most `times`) and rectified_flow."""
    eta: float = Field(0.0, ge=0, le=1)
    """ddpm: noise added while sampling; 0: DDIM, 1: ancestral."""
    unit_rows: int = Field(256, ge=1)
    """Rows of a unit (= of a shard) of the store of samples."""


class SampleQuality(Schema):
    """How samples are compared with rows that were held out."""

    split: tuple[Split, ...] = ("test", "val")
    """Splits of the source's rows that samples are compared with; absent: those of test and val
    that are not learned from."""
    rows: int = Field(200, ge=0)
    """Most samples, and most real rows, that are compared; 0: no comparison."""
    decoded: bool = True
    """Also compare what the rows decode to: surface points of shapes, pictures of images."""
    resolution: int = Field(32, ge=8)
    """Cells an axis of meshes, pixels of the longer side of pictures."""
    points: int = Field(512, ge=16)
    """Surface points of a shape in Chamfer distances."""
    neighbors: int = Field(5, ge=1)
    """Neighbors that density and coverage count (Naeem et al. 2020: 5)."""
    features: str = "pca"
    """Of pictures: `pca`, `classifier` (a small network trained on the labels), or the path of
    safetensors weights for that network (`pipeline.downstream.features.Classifier`)."""
    dimensions: int = Field(20, ge=2)
    """Principal components of `pca`."""

    @model_validator(mode="after")
    def _neighbors_among_rows(self) -> SampleQuality:
        if self.rows and self.neighbors >= self.rows:
            raise ValueError(
                f"neighbors: {self.neighbors} of {self.rows} rows that are compared; take fewer"
            )
        return self


class Job(Schema):
    """What every downstream run file has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    source: Source
    store: Location
    """Where the result goes."""
    train: Learning = Learning()
    resources: Computing = Computing()
    seed: int = 0

    @field_validator("store")
    @classmethod
    def _store_is_writable(cls, store: Location) -> Location:
        return Run._store_is_writable(store)

    def train_keys(self, source_hash: str) -> dict[str, Any]:
        """The keys that decide what training gives; `source_hash` is that of the store read."""
        return {
            "source": {**self.source.learning_keys(), "hash": source_hash},
            "train": self.train.learning_keys(),
            "seed": self.seed,
        }


class PriorJob(Job):
    """`fieldmill prior`: a distribution over rows of a store, and samples of it as a store."""

    method: PriorMethod
    sample: Sampling = Sampling()
    evaluate: SampleQuality = SampleQuality()

    @field_validator("method", mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _measured_on_others(self) -> PriorJob:
        both = sorted(set(self.evaluate.split) & set(self.source.split))
        if both and "split" not in self.evaluate.model_fields_set:
            rest = tuple(s for s in self.evaluate.split if s not in both)
            evaluate = self.evaluate.model_copy(update={"split": rest})
            self.__dict__["evaluate"] = evaluate  # frozen, and a constructor keeps `self`
            return self
        if both and self.evaluate.rows:
            raise ValueError(
                f"evaluate.split: {', '.join(both)} is learned from (source.split); compare with "
                "other splits, or set evaluate.rows: 0"
            )
        return self

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> PriorJob:
        name = self.method.name
        if self.sample.guidance != 1 and name not in ("ddpm", "rectified_flow"):
            raise ValueError(f"sample.guidance has no effect with {name}; remove it")
        if self.sample.eta and name != "ddpm":
            raise ValueError(f"sample.eta has no effect with {name}; remove it")
        if self.method.components is not None and self.method.normalize != "whiten":
            raise ValueError(
                "method.components has no effect without method.normalize: whiten; remove it"
            )
        return self

    def train_keys(self, source_hash: str) -> dict[str, Any]:
        keys = super().train_keys(source_hash)
        keys["method"] = self.method.model_dump(mode="json")
        if self.method.name == "gaussian":  # nothing is descended
            del keys["train"]
        return keys

    def sample_keys(self, source_hash: str) -> dict[str, Any]:
        """The keys that decide the rows of the store of samples."""
        drawn = self.sample.model_dump(mode="json")
        del drawn["unit_rows"]
        return {**self.train_keys(source_hash), "sample": drawn}

    def train_identity(self, source_hash: str) -> str:
        return identity(self.train_keys(source_hash))

    def sample_identity(self, source_hash: str) -> str:
        return identity(self.sample_keys(source_hash))


class GanJob(PriorJob):
    """`fieldmill gan`: a latent GAN on rows of a store, and samples of it as a store."""

    method: WassersteinGan = WassersteinGan()
