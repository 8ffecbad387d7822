"""The decoding child: samples come on standard input, what they became goes to standard output."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any, BinaryIO

from pipeline.ingest.frames import pack, unpack
from schemas.run import INGEST
from schemas.samples import Code, RejectedSample


def main() -> None:
    """Serves until standard input ends. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    settings, _ = _read(requests)
    ingest = INGEST[settings["kind"]].model_validate(settings["ingest"])
    decode = decoder(settings["kind"])
    limit_memory(ingest.memory_bytes)
    _write(answers, {"ready": True}, {})
    while True:
        try:
            job, files = _read(requests)
        except EOFError:
            return
        # ends this process even where a library hangs and the parent is gone
        signal.alarm(int(ingest.timeout_s) + 60)
        header, buffers = attempt(decode, job, files, ingest)
        signal.alarm(0)
        _write(answers, header, buffers)


def decoder(kind: str) -> Any:
    """The function that decodes this kind of sample: (job, files, ingest) -> columns."""
    if kind == "images":
        from pipeline.ingest.images import decode_array, decode_image

        def image(job: dict, files: dict, ingest: Any) -> dict:
            if job["array"]:
                shape, dtype = job["array"]
                return decode_array(files[""], tuple(shape), dtype, ingest, job["seed_key"])
            return decode_image(files[job["main"]], ingest, job["seed_key"])

        return image
    if kind in ("audio", "video"):
        if kind == "audio":
            from pipeline.ingest.audio import decode_sound as signal
        else:
            from pipeline.ingest.video import decode_video as signal
        return lambda job, files, ingest: signal(files[job["main"]], ingest, job["seed_key"])
    if kind == "shapes":
        from pipeline.ingest.meshes import decode_shape as decode
    elif kind == "equations":
        from pipeline.ingest.equations import decode_equation as decode
    else:
        from pipeline.ingest.clouds import decode_cloud as decode
    return lambda job, files, ingest: decode(files, job["main"], ingest, job["seed_key"])


def attempt(decode: Any, job: dict, files: dict, ingest: Any) -> tuple[dict, dict]:
    """Decodes one sample; every failure of a sample becomes an answer."""
    try:
        columns = decode(job, files, ingest)
    except RejectedSample as error:
        return {"code": error.code.value, "message": error.message}, {}
    except MemoryError as error:
        message = f"needs more than {ingest.memory_bytes} bytes: {error}"
        return {"code": Code.PARSER_MEMORY.value, "message": message}, {}
    except Exception as error:
        message = f"{type(error).__name__}: {error}"[:500]
        return {"code": Code.DECODE.value, "message": message}, {}
    buffers = {k: v for k, v in columns.items() if isinstance(v, bytes)}
    plain = {k: v for k, v in columns.items() if not isinstance(v, bytes)}
    return {"columns": plain}, buffers


def limit_memory(allowed: int) -> None:
    """Caps the private memory that decoding may add to what is in use now (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/status") as status:
        used = re.search(r"VmData:\s+(\d+) kB", status.read())
    cap = allowed + (int(used.group(1)) * 1024 if used else 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    cap = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))


def _read(stream: BinaryIO) -> tuple[dict, dict]:
    def exactly(size: int) -> bytes:
        data = stream.read(size)
        if len(data) < size:
            raise EOFError
        return data

    return unpack(exactly)


def _write(stream: BinaryIO, header: dict, buffers: dict) -> None:
    for piece in pack(header, buffers):
        stream.write(piece)
    stream.flush()
