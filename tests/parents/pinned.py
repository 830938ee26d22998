"""What applications are built into: a directory for each set of pinning files, in the cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tests.fixtures import cache
from tests.parents.app import MissingError


def directory(name: str, files: Iterable[Path], build: Callable[[Path], None]) -> Path:
    """Returns the directory that `build` fills. It is made again when one of the files changes."""
    of = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]
    return cache.make(cache.directory() / "parents" / f"{name}-{of}", build, topic="parents")


def run(
    command: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Runs one step of a build, without output. Raises MissingError with the end of its output."""
    try:
        subprocess.run(
            command,
            cwd=cwd,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            timeout=1200,
        )
    except FileNotFoundError as error:
        raise MissingError(f"there is no {command[0]}") from error
    except subprocess.CalledProcessError as error:
        said = error.stdout.decode(errors="replace")[-500:]
        raise MissingError(f"{command[0]} failed: {said}") from error
