"""The library's reference, from its docstrings, by pdoc: `python -m reports.api FOLDER`."""

import sys
from pathlib import Path

import pdoc

import fce

HIDDEN = ("!fce.stages", "!fce.__main__")  # the suite's stages, which need a checkout


def write(folder: Path) -> None:
    """Write the pages; public names are loaded first, since pdoc takes a module as it finds it."""
    for name in fce.__all__:
        getattr(fce, name)
    pdoc.render.configure(docformat="google", math=False, show_source=True)
    pdoc.pdoc("fce", *HIDDEN, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(Path(sys.argv[1]) / "index.html")
