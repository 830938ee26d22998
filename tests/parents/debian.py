"""Debian packages that applications of the bench need, beyond those of `make setup`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache

from tests.parents.app import MissingError


def installs(command: str, *packages: str) -> Callable[[], None]:
    """What brings `packages` where `command` is missing. Raises MissingError."""
    return lambda: _install(command, packages)


@cache
def _install(command: str, packages: tuple[str, ...]) -> None:
    if shutil.which(command):
        return
    apt = ("apt-get", "--quiet", "--yes", "-o", "DPkg::Lock::Timeout=600")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update",), ("install", "--no-install-recommends", *packages)):
        done = subprocess.run(
            [*apt, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingError(f"apt-get {words[0]} failed: {done.stderr[-300:].strip()}")
    if not shutil.which(command):
        raise MissingError(f"{' '.join(packages)} brought no {command}")
