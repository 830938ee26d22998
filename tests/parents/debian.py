"""Debian packages that applications of the bench need, beyond those of `make setup`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache

from tests.parents.app import MissingError


def installs(command: str, *packages: str) -> Callable[[], None]:
    """What brings `packages` where `command` is missing. Raises MissingError."""
    return lambda: _install(command, packages)


def installs_all(*packages: str) -> Callable[[], None]:
    """What brings each of `packages` that is missing. Raises MissingError."""
    return lambda: _install_missing(packages)


@cache
def _install(command: str, packages: tuple[str, ...]) -> None:
    if shutil.which(command):
        return
    _apt_get(packages)
    if not shutil.which(command):
        raise MissingError(f"{' '.join(packages)} brought no {command}")


@cache
def _install_missing(packages: tuple[str, ...]) -> None:
    shown = "${db:Status-Status} ${Package}\n"
    known = ["dpkg-query", "--show", "--showformat", shown, *packages]
    found = subprocess.run(known, capture_output=True, text=True, check=False).stdout
    missing = [name for name in packages if f"installed {name}" not in found.splitlines()]
    if missing:
        _apt_get(missing)


def _apt_get(packages: Sequence[str]) -> None:
    apt = ("apt-get", "--quiet", "--yes", "-o", "DPkg::Lock::Timeout=600")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", "--no-install-recommends", *packages)):
        done = subprocess.run(
            [*apt, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingError(f"apt-get {words[0]} failed: {done.stderr[-300:].strip()}")
