"""Scalars and pictures for TensorBoard, in files below a job's store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.downstream.lesson import JobFiles
from pipeline.storage import local_folder

FOLDER = "tensorboard"


class Events:
    """Event files of one run of training; on object stores they are uploaded now and then."""

    def __init__(self, files: JobFiles, step: int = 0):
        from tensorboardX import SummaryWriter

        self.files = files
        location = files.objects.location
        self.local = location.scheme == "file"
        self._temporary: Any = None
        if self.local:
            folder = local_folder(location) / files.prefix / FOLDER
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="fieldmill-events-")
            folder = Path(self._temporary.name)
        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=step or None, flush_secs=10)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """pixels: uint8 [h, w, 3]."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def upload(self) -> None:
        """Brings what was written so far to the store."""
        self.writer.flush()
        if not self.local:
            for path in self.folder.iterdir():
                self.files.put(f"{FOLDER}/{path.name}", path.read_bytes())

    def close(self) -> None:
        self.upload()
        self.writer.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
