"""The virtual environment of the Python applications: pinned, made once, kept in the cache."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.fixtures import cache as kept
from tests.parents import pinned
from tests.parents.app import MissingError

FOLDER = Path(__file__).parent  # the applications
_PINNED = FOLDER / "requirements.txt"
_OLDER = FOLDER / "older.txt"


@cache
def directory() -> Path:
    """Returns the environment's directory, which is made where it is missing."""
    of = hashlib.sha256(_PINNED.read_bytes() + platform.python_version().encode()).hexdigest()[:16]
    return kept.make(kept.directory() / "parents" / f"python-{of}", _build, topic="parents")


def _build(folder: Path) -> None:
    python = folder / "bin/python"
    install = (*(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),)
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
        subprocess.run([*install, "--requirement", _PINNED], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise MissingError(f"pip failed: {error.stderr.decode()[-500:]}") from error


def install() -> None:
    """Brings the environment. Raises MissingError."""
    directory()


def python() -> str:
    """The interpreter of the environment."""
    return str(directory() / "bin/python")


@cache
def older() -> Path:
    """A directory with some packages in older versions, to be found before the others'."""

    def build(folder: Path) -> None:
        words = ("--quiet", "--no-deps", "--target", folder, "--requirement", _OLDER)
        pinned.run([python(), "-m", "pip", "install", *words], cwd=folder)

    return pinned.directory("python-older", [_OLDER, _PINNED], build)


def packages() -> Path:
    """The directory with the packages."""
    (found,) = (directory() / "lib").glob("python3.*/site-packages")
    return found


def environment() -> dict[str, str]:
    """The variables with which the programs of this folder are found."""
    return {"PYTHONPATH": str(FOLDER), "PYTHONDONTWRITEBYTECODE": "1"}
