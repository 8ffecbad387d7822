"""Frames between the ingest process and its decoding child: a length, JSON, raw buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

HEAD = struct.Struct("<Q")


def pack(header: dict[str, Any], buffers: Mapping[str, bytes]) -> list[bytes]:
    """One frame as pieces to be written in order."""
    sizes = [[name, len(data)] for name, data in buffers.items()]
    text = json.dumps({**header, "buffers": sizes}, default=_plain).encode()
    return [HEAD.pack(len(text)) + text, *buffers.values()]


def unpack(read: Callable[[int], bytearray]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads one frame; `read(n)` gives exactly n bytes or raises EOFError."""
    (length,) = HEAD.unpack(read(HEAD.size))
    header = json.loads(bytes(read(length)))
    return header, {name: bytes(read(size)) for name, size in header.pop("buffers")}


def _plain(value: Any) -> Any:
    """A numpy scalar or array as JSON has it."""
    return value.tolist()
