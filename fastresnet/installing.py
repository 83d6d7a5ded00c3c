"""How what is missing is installed, as a line to type."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def near(path: Path) -> str:
    """Return a path as it is typed from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def pip_install(*words: str) -> str:
    """Return the line that installs for the Python that is running."""
    return shlex.join([near(Path(sys.executable)), "-m", "pip", "install", *words])


def install_extra(name: str) -> str:
    """Return how one of our extras is installed: from a clone, as no package index has fastresnet."""
    return f"in the clone, {pip_install('-c', 'constraints.txt', '-e', f'.[{name}]')}"
