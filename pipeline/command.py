"""The one command, `fce`: every stage, and what else there is to do; a module is loaded only when it is called."""

import sys
from collections.abc import Sequence
from importlib import import_module

from pipeline.catalogue import COMMANDS, STAGES, first_line

FILES = {name: stage.file for name, stage in STAGES.items()} | COMMANDS


def words() -> str:
    """What `fce --help` says."""
    def listed(names: Sequence[str]) -> str:
        return "\n".join(f"  {name:<15}{first_line(FILES[name])}" for name in names)

    return (f"usage: fce NAME [flags]\n       fce NAME --help\n\nthe stages, which Snakemake runs in this order:\n"
            f"{listed(list(STAGES))}\n\nand:\n{listed(list(COMMANDS))}\n")


def main(argv: Sequence[str]) -> int:
    name, *flags = argv or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(words())
        return 0
    if name not in FILES:
        from pipeline.mistakes import suggestion  # pydantic comes with it

        sys.stderr.write(f"error: there is no '{name}'{suggestion(name, FILES)}; `fce --help` lists all\n")
        return 2
    if name in COMMANDS:
        code: int = import_module(COMMANDS[name].removesuffix(".py").replace("/", ".")).main(flags)
        return code
    from pipeline.stage import main as run  # torch takes seconds to import

    return run(name, flags)
