"""What a listed file is, by its name: a sample, a container of samples, or of another kind."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from schemas.run import INGEST

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in "png jpg jpeg jpe jfif webp tif tiff bmp gif ppm pgm pbm pnm".split()  # noqa: SIM905
)
IDX = re.compile(r"(idx[1-9](-ubyte)?|\.idx)(\.gz)?$")
TAR = (".tar", ".tar.gz", ".tgz")


def sample_suffixes(kind: str) -> frozenset[str]:
    """Suffixes (lower case) of files that are samples of this kind on their own."""
    if kind == "images":
        return IMAGE_SUFFIXES
    if kind == "shapes":
        from pipeline.ingest.meshes import SHAPE_SUFFIXES

        return frozenset(SHAPE_SUFFIXES)
    if kind == "points":
        from pipeline.ingest.clouds import CLOUD_SUFFIXES

        return frozenset(CLOUD_SUFFIXES)
    if kind == "audio":
        from pipeline.ingest.audio import AUDIO_SUFFIXES

        return AUDIO_SUFFIXES
    if kind == "video":
        from pipeline.ingest.video_files import VIDEO_SUFFIXES

        return VIDEO_SUFFIXES
    if kind == "equations":
        from pipeline.ingest.equations import EQUATION_SUFFIXES

        return frozenset(EQUATION_SUFFIXES)
    raise ValueError(f"ingest of kind '{kind}' is not built; {', '.join(INGEST)} are")


def require_decoder(key: str, kind: str) -> None:
    """Raises ValueError where this machine lacks what reads a file: no fault of the file."""
    if kind == "video":
        from pipeline.ingest.video_files import ENCODED, EXTRA, has_opencv

        if suffix(key) in ENCODED and not has_opencv():
            raise ValueError(
                f"'{key}' is read by OpenCV, which is not installed: {EXTRA}, or leave such files "
                "out (dataset.exclude)"
            )


def suffix(key: str) -> str:
    """The last suffix, lower case, with its dot; '' if the name has none."""
    name = key.rpartition("/")[2]
    stem, dot, last = name.rpartition(".")
    return "." + last.lower() if dot and stem else ""


def container_type(key: str, kind: str) -> str | None:
    """`tar`, `parquet`, `npy`, `npz` or `idx` if the file holds many samples of this kind."""
    name = key.rpartition("/")[2].lower()
    if name.endswith(TAR):
        return "tar"
    if kind == "images":
        if name.endswith((".parquet", ".npy", ".npz")):
            return name.rpartition(".")[2]
        if IDX.search(name):
            return "idx"
    return None


def is_hidden(key: str) -> bool:
    """Dot files, folders of archives and previews, and anything inside a store of arrays."""
    parts = key.split("/")
    return any(
        (part.startswith(".") and part not in (".", ".."))
        or part in ("__MACOSX", "Thumbs.db", "desktop.ini")
        for part in parts
    ) or any(part.endswith((".zarr", ".prepared")) for part in parts[:-1])


def is_chosen(sample_id: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    """Whether the glob patterns of the dataset keep a sample."""
    if any(fnmatchcase(sample_id, pattern) for pattern in exclude):
        return False
    return not include or any(fnmatchcase(sample_id, pattern) for pattern in include)
