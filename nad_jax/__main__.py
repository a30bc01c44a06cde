"""The command `nad_jax`: in a clone of the repository, or below it, the command line of experiments."""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

_NONE_HERE = (
    "nad_jax: no recipes here: they are the folders configs/ and experiments/ of a clone of the "
    "repository; run this inside a clone (in Python, `import nad_jax` works anywhere)\n"
)


def find_clone(folder: Path) -> Path | None:
    """The nearest folder from here upwards that holds recipes and the program that runs them."""
    for root in (folder, *folder.parents):
        if (root / "configs").is_dir() and (root / "experiments" / "main.py").is_file():
            return root
    return None


def _from_clone(argument: str, root: Path) -> str:
    """An argument whose recipe, if it is not found from here, is that of the clone."""
    found = re.fullmatch(r"(--?config=)?(configs/[^:]*)(:.*)?", argument, re.DOTALL)
    if not found or Path(found[2]).exists() or not (root / found[2]).exists():
        return argument
    return f"{found[1] or ''}{root / found[2]}{found[3] or ''}"


def main() -> NoReturn:
    """Becomes `python -m experiments.main` of the clone, with the same arguments.

    Recipes of the clone are found from below it; all other paths are as one writes them.
    """
    root = find_clone(Path.cwd())
    if root is None and {"--help", "-help"} & {*sys.argv[1:]}:
        sys.stdout.write(_NONE_HERE)
        sys.exit(0)
    if root is None:
        sys.stderr.write(f"error: {_NONE_HERE}")
        sys.exit(2)
    arguments = [_from_clone(argument, root) for argument in sys.argv[1:]]
    # A new program: the package is then that of the clone, whichever is installed.
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "experiments.main", *arguments]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    main()
