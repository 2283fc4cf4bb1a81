"""Which source files a stage computes with: its own module and what it imports of ours, to the end.

Snakemake depends on these files, so an edit retrains what it may change and nothing else. Modules
that only check, report or transport (EXEMPT) are left out: a reworded log line retrains nothing.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fce", "eval", "reports")
CHECKS = "fce/inputs.py"  # nor is what it imports followed: any stage computes without it
EXEMPT = {
    CHECKS,
    *("fce/params.py", "fce/progress.py", "fce/resume.py", "fce/schema.py", "fce/sources.py", "fce/stage.py"),
    "fce/track.py",
}


def sources(module: str) -> list[str]:
    """The files, relative to the repository's root, that the stage in file `module` computes with."""
    found: set[str] = set()
    queue = [module]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue.extend(imports(path) if path != CHECKS else [])
    return sorted(found - EXEMPT)


@cache
def imports(path: str) -> list[str]:
    """Our own files that the file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = (Path(*name.split(".")).with_suffix(".py") for name in names if name.split(".")[0] in PACKAGES)
    return sorted(str(file) for file in files if (ROOT / file).exists())


def fingerprint(module: str) -> str:
    """A hash of the code that the stage in file `module` computes with."""
    code = hashlib.sha256()
    for path in sources(module):
        code.update(path.encode() + (ROOT / path).read_bytes())
    return code.hexdigest()
