"""Which source files a stage computes with: its own module and what it imports of ours, to the end.

Snakemake depends on these files, so an edit retrains what it may change and nothing else. What only checks, reports or
transports is left out, and so is what it imports: a reworded log line retrains nothing. Of pipeline/ that is all but
numerics.py, which every stage runs under.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

from pipeline.catalogue import CHECKS, ROOT

PACKAGES = ("fce", "eval", "reports")
NUMERICS = "pipeline/numerics.py"


def sources(file: str) -> list[str]:
    """The files, relative to the repository's root, that the stage in `file` computes with."""
    found: set[str] = set()
    queue = [file]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue.extend(imports(path))
    return sorted({NUMERICS, *found})


@cache
def imports(path: str) -> list[str]:
    """Our own files that the file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = (Path(*name.split(".")).with_suffix(".py") for name in names - {CHECKS} if name.split(".")[0] in PACKAGES)
    return sorted(str(file) for file in files if (ROOT / file).exists())


@cache
def fingerprint(file: str) -> str:
    """A hash of the code that the stage in `file` computes with."""
    code = hashlib.sha256()
    for path in sources(file):
        code.update(path.encode() + (ROOT / path).read_bytes())
    return code.hexdigest()
