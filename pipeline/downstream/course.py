"""How small networks learn from rows in memory: alone or on several workers, and again from where
they were stopped.

All of a job's trainings go through the loop that priors go through; the state of each one lies in
the job's store until the job has its report.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.downstream.codes import Codes, ResidentBatches
from pipeline.downstream.distribution import Update
from pipeline.downstream.lesson import JobFiles
from pipeline.downstream.training import Hooks, train
from pipeline.draw import Draw
from schemas.downstream import Learning

Loss = Callable[[Int[Tensor, "b"], Draw], Float[Tensor, ""]]
"""Mean over rows by number; what is random comes from the draw, which has a key for each row."""


@dataclass(frozen=True)
class Course:
    """Which worker this is, and where trainings keep their state."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    files: JobFiles | None = None
    """Absent: nothing is kept."""
    stop: Callable[[], bool] = field(default=lambda: False)
    checkpoint_s: float = 60.0
    """Seconds between checkpoints."""

    def learn(
        self,
        model: nn.Module,
        loss: Loss,
        rows: int,
        *,
        name: str,
        steps: int,
        batch: int,
        rate: float,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Descends `loss` by AdamW; the model, on `device`, is in evaluation mode afterwards.

        Args:
            model: The same values on every rank.
            rows: Numbers below it are given to `loss`, epoch after epoch in seeded orders.
            name: Tells the trainings of a job apart.
        """
        stem = "heads/" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        done, left = f"{stem}.safetensors", f"{stem}.checkpoint.safetensors"
        kept = self.files.get(done) if self.files else None
        if kept is not None:
            model.load_state_dict(load(kept))
            model.eval()
            return
        learning = Learning(
            steps=steps, batch=min(batch, rows), rate=rate, weight_decay=weight_decay, ema=0.0,
            warmup=max(steps // 20, 1), checkpoint_s=self.checkpoint_s, previews=0,
        )  # fmt: skip
        numbers = torch.arange(rows, device=self.device)
        batches = ResidentBatches(
            torch.zeros(rows, 0, device=self.device), numbers, batch=learning.batch, seed=seed,
            rank=self.rank, world=self.world,
        )  # fmt: skip

        def terms(model: nn.Module, batch: Codes, draw: Draw) -> dict[str, Tensor]:
            return {"loss": loss(batch.labels, draw)}

        hooks, resume = Hooks(stop=self.stop), None
        if self.files is not None:
            files, resume = self.files, self.files.get(left)
            hooks.checkpoint = lambda data: files.put(left, data)
        train(model, (Update("", terms),), batches, learning, seed=seed, rank=self.rank,
              world=self.world, hooks=hooks, resume=resume)  # fmt: skip
        if self.files is not None and self.rank == 0:
            state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
            self.files.put(done, save(state))

    def close(self) -> None:
        """Removes the state of all trainings once every rank is through; all ranks call it."""
        if self.files is None:
            return
        if self.world > 1:
            torch.distributed.barrier()
        if self.rank:
            return
        objects, prefix = self.files.objects, f"{self.files.prefix}/heads/"
        objects.delete([entry.key for entry in objects.list(prefix)])


ALONE = Course()
