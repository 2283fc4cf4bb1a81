"""The door to files: written whole or not at all, beside their place and then moved there; npz read without pickles."""

import csv
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError

Arrays = dict[str, np.ndarray]
Header = tuple[tuple[int, ...], np.dtype]  # an array's shape and type
DAMAGED = (OSError, ValueError, EOFError, SyntaxError, NotImplementedError, KeyError, zipfile.BadZipFile, zlib.error)


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


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    with atomic(path) as partial:
        partial.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=True) + "\n").encode())


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    with atomic(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_arrays(path: str | Path, arrays: Mapping[str, Any], compressed: bool = False) -> None:
    with atomic(path) as partial, open(partial, "wb") as file:  # of a name, numpy makes one that ends in .npz
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, needed: tuple[str, ...], also: tuple[str, ...] = ()) -> Arrays:
    """The arrays `needed` of an npz file, and those of `also` that it has.

    Raises:
        UserError: the file is damaged, is something else, or lacks an array.
    """
    with opened(path, needed) as file:
        return {key: file[key] for key in (*needed, *also) if key in file.files}


class Npz(Mapping[str, np.ndarray]):
    """The arrays of an npz file, each read once, when it is asked for; errors as read_arrays."""

    def __init__(self, path: Path, needed: tuple[str, ...]):
        self.path, self.known = path, dict[str, np.ndarray]()
        with opened(path, needed) as file:
            self.names = list(file.files)

    def header(self, name: str) -> Header:
        """Of an array, whose content stays on the disk."""
        with opened(self.path, (name,)) as file, file.zip.open(f"{name}.npy") as stream:
            first = np.lib.format.read_magic(stream) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            if dtype.hasobject:
                raise ValueError("Object arrays cannot be loaded: they are pickles")
            return shape, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.known:
            self.known |= read_arrays(self.path, (name,))
        return self.known[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@contextmanager
def opened(path: Path, needed: tuple[str, ...]) -> Iterator[Any]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds one bare array, but an npz file with {', '.join(needed)} is needed")
        with file:
            missing = [key for key in needed if key not in file.files]
            if missing:
                raise UserError(f"{path}: no array '{missing[0]}'; it has {', '.join(file.files) or 'none'}")
            yield file
    except DAMAGED as error:
        reason = str(error).partition(". If you trust")[0]  # numpy goes on with the way to run a stranger's code
        raise UserError(f"{path} is not a readable npz file: {reason}") from None


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
