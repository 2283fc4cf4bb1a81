"""The door to npz files: no pickles, and one message where a file is not what it should be."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fce.stage import UserError


def read_arrays(path: Path, needed: tuple[str, ...], also: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The arrays `needed` of an npz file, and those of `also` that it has.

    Raises:
        UserError: the file is damaged, is something else, or lacks an array.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds one bare array, but an npz file with {', '.join(needed)} is needed")
        with file:
            missing = [key for key in needed if key not in file.files]
            if missing:
                raise UserError(f"{path}: no array '{missing[0]}'; it has {', '.join(file.files) or 'none'}")
            return {key: file[key] for key in (*needed, *also) if key in file.files}
    except (OSError, ValueError, EOFError, SyntaxError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition(". If you trust")[0]  # numpy goes on with the way to run a stranger's code
        raise UserError(f"{path} is not a readable npz file: {reason}") from None
