"""Which exit code an error means, and the one sentence it is told in."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from jobs import text
from jobs.driver import Incomplete
from jobs.tree import ConfigError
from jobs.units import Stopped, WorldError, one_line
from pipeline.storage import StorageError
from schemas.samples import NothingUsable

COMPLETE, BUG, USAGE, GATE, WORLD, INCOMPLETE = 0, 1, 2, 3, 4, 5


class GateFailed(RuntimeError):
    """The run ended, but too much of it is unusable, or what is stored is damaged."""


def code_of(error: BaseException) -> int:
    """The exit code: 2 usage, 3 gate, 4 world, 5 incomplete, 130/143 signals, 1 a bug."""
    if isinstance(error, Stopped):
        return 128 + error.number
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, GateFailed | NothingUsable):
        return GATE
    if isinstance(error, Incomplete):
        return INCOMPLETE
    if isinstance(error, WorldError | StorageError | MemoryError) or _of_storage(error):
        return WORLD
    if _raised_by_us(error):
        if type(error) is ValueError:
            return USAGE
        if type(error) is RuntimeError:
            return WORLD
    return BUG


def _of_storage(error: BaseException) -> bool:
    """Whether a storage library or the operating system raised it."""
    modules = ("obstore", "botocore", "aiobotocore", "s3fs", "fsspec", "aiohttp", "ray")
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in modules


def _raised_by_us(error: BaseException) -> bool:
    """Whether the raising line is one of our packages: then it is a sentence, not an accident."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).resolve().parents[1]
    ours = [str(root / name) + os.sep for name in ("pipeline", "jobs", "schemas")]
    return bool(frames) and frames[-1].filename.startswith(tuple(ours))


def tell(error: BaseException, command: str) -> int:
    """Prints the error for its reader and, for 3 to 5, the command that continues."""
    code = code_of(error)
    if code == BUG:
        trace = "".join(traceback.format_exception(error))
        print(text.redact(trace), file=sys.stderr)
        text.warn(f"fieldmill: this is a bug in fieldmill: {one_line(error)}")
    elif code == USAGE:
        for line in getattr(error, "problems", None) or [str(error)]:
            text.warn(f"fieldmill: {line}")
    elif code in (GATE, WORLD, INCOMPLETE):
        text.warn(f"fieldmill: {sentence(error)}")
        text.warn(f"  continue with: {getattr(error, 'recover', None) or command}")
    else:
        text.warn("fieldmill: stopped; what is done is kept")
        text.warn(f"  continue with: {command}")
    return code


def sentence(error: BaseException) -> str:
    """An error of the world in one line, with the way out for the common ones."""
    line = one_line(error) or type(error).__name__
    if isinstance(error, StorageError):  # it is such a sentence
        return line
    low = line.lower()
    name = type(error).__name__
    if "nosuchbucket" in low.replace(" ", "") or "bucket does not exist" in low:
        return f"the bucket does not exist: {line}"
    credentials = ("credential", "accessdenied", "forbidden", "signaturedoesnotmatch", "imds")
    if name in ("PermissionDeniedError", "UnauthenticatedError", "NoCredentialsError") or any(
        word in low.replace(" ", "")
        for word in (*credentials, "invalidaccesskeyid", "169.254.169.254")
    ):
        return (
            "the storage refuses access: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
            f"profile, or a role of this machine ({line})"
        )
    return line
