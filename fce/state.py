"""Files that are whole or absent: every output is written beside its place, then moved there."""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`, on failure it goes.

    A stage's record is locked while it runs, so what a killed process left behind is written over by the next.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers, strings and containers of them only."""
    with atomic(path) as partial:
        partial.write_bytes(packed(content))


def packed(content: dict[str, Any]) -> memoryview:
    """A checkpoint as bytes: torch's own writing to a file hides why a disk refuses it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing code from it."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content


def save_json(path: str | Path, content: Any) -> None:
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=True) + "\n")


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
