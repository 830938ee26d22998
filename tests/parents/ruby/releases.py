"""Servers of Ruby that this Debian release lacks, each with its Ruby, in a root of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.fixtures import debian_root
from tests.fixtures.debian_root import Root
from tests.parents.app import MissingError

_FOLDER = Path(__file__).parent
_INNER = Path("/opt/parents")
ROOTS: Mapping[str, Root] = {
    "4.3": debian_root.PUMA_4,
    "6.6": debian_root.PUMA_6,
    "8.0": debian_root.PUMA_8,
    "passenger": debian_root.PASSENGER,
    "unicorn": debian_root.UNICORN,
}
LIBRARY = str(_INNER)  # where the programs of this folder are, in each root


def directory(release: str) -> Path:
    """The root with this release of Puma, or with Unicorn. Raises MissingError."""
    try:
        root = ROOTS[release].make()
    except debian_root.MissingError as error:
        raise MissingError(str(error)) from error
    inner = root / _INNER.relative_to("/")
    inner.mkdir(parents=True, exist_ok=True)
    for pattern in ("*.rb", "*.ru"):
        for file in _FOLDER.glob(pattern):
            shutil.copy(file, inner)
    return root


def installs(release: str) -> Callable[[], None]:
    """What brings it. It raises MissingError."""

    def install() -> None:
        directory(release)

    return install


def command(release: str, *words: str) -> Sequence[str]:
    """What runs a command in the root."""
    # Puma 4 looks for the directory that its shell says
    return debian_root.inside(directory(release), ["env", "PWD=/", *words])
