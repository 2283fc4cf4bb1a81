"""Checkpoints: complete, written whole or not at all, read without executing code."""

import io
from pathlib import Path
from typing import Any

import torch

from pipeline.files import write_bytes


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers, strings and containers of them only."""
    write_bytes(path, packed(content))


def packed(content: dict[str, Any]) -> memoryview:
    """A checkpoint as bytes: torch's own writing to a file hides why a disk refuses it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load(path: str | Path, lazy: bool = False) -> dict[str, Any]:
    """Read a checkpoint, on the CPU, without executing code from it; where `lazy`, its tensors stay on the disk."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    return content
