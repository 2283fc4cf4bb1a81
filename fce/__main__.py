"""The command `fce`: hands over to the suite's pipeline, which lies beside this package in a checkout.

The installed package is the library alone; its command works in a checkout, and in the folders below one.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def checkout() -> Path | None:
    """The checkout that this package lies in, else the one that the current folder does."""
    places = [HERE, Path.cwd(), *Path.cwd().parents]
    return next((place for place in places if (place / "pipeline" / "catalogue.py").is_file()), None)


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - a checkout asks no installer
        sys.stderr.write(f"error: this is Python {sys.version.split()[0]}, and the suite is of 3.11: `make install`\n")
        return 2
    root = checkout()
    if root is None:
        sys.stderr.write("error: fce's stages run from a checkout of its repository, and this folder is in none; "
                         "go into one, or clone it\n")
        return 2
    if root != HERE:  # an installed library: the checkout's own is to be used, whole
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        os.execve(sys.executable, [sys.executable, "-m", "fce", *sys.argv[1:]], os.environ | {"PYTHONPATH": path})
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    from pipeline.command import main as run  # the library does not need it, and may be installed without

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
