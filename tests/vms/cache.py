"""Where boxes and kernels are kept: outside the checkout, so that a clean clone finds them."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fleet import root as fleet_root


def directory() -> Path:
    """`$THROUGHLINE_CACHE`, else that of the nspawn fleets' roots."""
    chosen = os.environ.get("THROUGHLINE_CACHE")
    return Path(chosen) if chosen else fleet_root.cache_directory()


UNUSED_SECONDS = 14 * 86400.0


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(line: str, *, topic: str = "boxes") -> None:
    """Progress goes to standard error at once."""
    print(f"{topic}: {line}", file=sys.stderr, flush=True)


def _remove_unused(name: str, folder: Path) -> None:
    """Removes what a killed build left, and what no run has asked for in a long time."""
    for other in folder.glob(f"{name}-*"):
        age = time.time() - other.stat().st_mtime
        if other.suffix == ".partial" or age > UNUSED_SECONDS:
            shutil.rmtree(other)


def make(finished: Path, build: Callable[[Path], None], *, topic: str = "boxes") -> Path:
    """Returns the directory `finished`, which `build` fills first where it is missing.

    It gets its name, `NAME-HASH`, when it is complete.
    """
    if finished.is_dir():
        os.utime(finished)
        return finished
    finished.parent.mkdir(parents=True, exist_ok=True)
    name = finished.name.rpartition("-")[0]
    with _locked(finished.parent / f"{name}.lock"):
        if finished.is_dir():
            return finished
        _remove_unused(name, finished.parent)
        partial = finished.with_name(f"{finished.name}.partial")
        partial.mkdir()
        start = time.monotonic()
        say(f"building {finished} (once) …", topic=topic)
        build(partial)
        partial.rename(finished)
        say(f"{name}: ready in {time.monotonic() - start:.0f} s", topic=topic)
    return finished
