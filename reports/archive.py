"""What the report reads of a profile's results, in one small file that git can hold.

Of arrays it has what the figures show, 64 images and densities to a thousandth, of one seed; of records, where a number
comes from.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.catalogue import STAGES
from pipeline.errors import UserError
from pipeline.files import Arrays, read_arrays, write_bytes
from pipeline.track import of_machine, read_record
from reports.pictures import GRID, POINTS, ROW
from reports.scores import Results

PARTS = ("train", "validation", "test")


def of_data(path: Path, _: bool) -> Arrays:
    names = (f"{part}_{what}" for part in PARTS for what in ("images", "labels", "count"))
    found = read_arrays(path, (), ("test", *names))
    counts = {"test": POINTS} | {f"{part}_images": GRID**2 for part in PARTS}  # labels are counted: all stay
    for part in [part for part in PARTS if f"{part}_images" in found and f"{part}_labels" not in found]:
        found.setdefault(f"{part}_count", np.empty((len(found[f"{part}_images"]), 0), np.uint8))  # a shape alone
    return {name: array[:counts.get(name)] for name, array in found.items()}


def of_density(path: Path, shown: bool) -> Arrays:
    found = read_arrays(path, ("axis", "truth", "flow"), ("ebm",)) if shown else {}
    return {name: array if name == "axis" else array.astype(np.float16) for name, array in found.items()}


def of_samples(path: Path, shown: bool) -> Arrays:
    found = read_arrays(path, ("images", "levels")) if shown else {}
    return {name: array[:GRID**2] if name == "images" else array for name, array in found.items()}


def of_trajectory(path: Path, shown: bool) -> Arrays:
    found = read_arrays(path, ("updates", "bits_per_dim", "distance", "samples", "images", "levels"))
    return found | {"images": found["images"][:, :ROW * shown]}


CUTS: dict[str, Callable[[Path, bool], Arrays]] = {"data": of_data, "density": of_density, "samples": of_samples,
                                                   "trajectory": of_trajectory}


def entries(results: Results) -> Iterator[tuple[Path, bytes]]:
    """(place below the build folder, content) of each file of these results that the report reads."""
    whole = [*results.folder.glob("*/params/joint/*.json"), *results.folder.glob("**/*.benchmark.tsv")]
    places = [(stage, experiment) for experiment in results.settings.experiments[results.profile] for stage in STAGES]
    shown = {path for place in places for path in results.pictured(*place)[1].values()}
    for stem in (path.with_suffix("") for place in places for path in results.outputs(*place).values()):
        whole += [path for ending in (".json", ".csv") if (path := stem.with_suffix(ending)).exists()]
        if lines := ended(stem.with_suffix(".run.jsonl")):
            yield stem.with_suffix(".run.jsonl").relative_to(results.build), lines
        if (path := stem.with_suffix(".npz")).exists():
            if stem.name not in CUTS:  # a score's values per image
                whole.append(path)
            elif arrays := CUTS[stem.name](path, path in shown):
                yield path.relative_to(results.build), npz(arrays)
    yield from ((path.relative_to(results.build), path.read_bytes()) for path in whole)


def ended(record: Path) -> bytes:
    """The lines of the record of a run that ended well, but for its curves; what the machine told of itself stays."""
    lines = read_record(record) if record.exists() else []
    if not lines or lines[-1].get("status") != "FINISHED":
        return b""
    return "".join(json.dumps(line) + "\n" for line in lines
                   if line["kind"] != "metrics" or any(map(of_machine, line["values"]))).encode()


def npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def pack(results: Results, archive: Path) -> None:
    """Write these results into the archive, beside what it has of others that params.yaml still names.

    The same results give the same bytes.
    """
    content = dict(entries(results))
    if archive.exists():
        with unpacked(archive) as folder:  # of both together one seed's arrays are shown
            for path, each in content.items():
                write_bytes(folder / path, each)
            content = dict(entries(Results(results.settings, results.profile, folder)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as tar:
        for path, each in sorted(content.items()):
            entry = tarfile.TarInfo(path.as_posix())  # without date and owner
            entry.size = len(each)
            tar.addfile(entry, io.BytesIO(each))
    write_bytes(archive, buffer.getvalue())


@contextmanager
def unpacked(build: Path) -> Iterator[Path]:
    """The folder of results that `build` is; of an archive, one that lasts as long as the context.

    Raises:
        UserError: it is neither.
    """
    if build.is_dir():
        yield build
        return
    with TemporaryDirectory() as folder:
        try:
            with tarfile.open(build) as tar:
                tar.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"--build: {build} is neither the folder of results, which snakemake makes, nor an archive "
                            f"of them ({error})") from None
        yield Path(folder)
