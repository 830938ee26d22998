"""The wheels that the lock names: downloaded once, checked, and read file by file."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bundle import interpreter

LOCK = Path(__file__).with_name("requirements.lock")

# Wheels for the release's own interpreter and C library.
TARGET_OPTIONS = (
    "--only-binary=:all:",
    "--implementation=cp",
    f"--python-version={'.'.join(map(str, interpreter.VERSION))}",
    "--platform=manylinux_2_34_x86_64",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
)


def read_lock(lock: Path) -> dict[str, set[str]]:
    """`name==version` to the SHA-256 digests of its wheels."""
    entries: dict[str, set[str]] = {}
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        requirement, *options = line.split()
        entries[requirement] = {option.removeprefix("--hash=sha256:") for option in options}
    return entries


def fetch(lock: Path, folder: Path) -> list[Path]:
    """The wheels of the lock, sorted by name; those that `folder` lacks are downloaded into it.

    Raises subprocess.CalledProcessError when pip fails or refuses a hash, LookupError when the
    lock names a wheel that the interpreter does not select.
    """
    entries = read_lock(lock)
    wanted = {digest: requirement for requirement, digests in entries.items() for digest in digests}
    folder.mkdir(parents=True, exist_ok=True)
    found = _by_digest(folder)
    if lacking := sorted({wanted[digest] for digest in wanted.keys() - found.keys()}):
        print(f"bundle: Downloading {len(lacking)} Python package(s)", flush=True)
        _download(lacking, entries, folder)
        found = _by_digest(folder)
    if missing := wanted.keys() - found.keys():
        raise LookupError(f"the interpreter uses none of these wheels of {lock}: {sorted(missing)}")
    return sorted(found[digest] for digest in wanted)


def _by_digest(folder: Path) -> dict[str, Path]:
    return {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in folder.glob("*.whl")}


def _download(requirements: Sequence[str], entries: dict[str, set[str]], folder: Path) -> None:
    lines = [
        requirement + "".join(f" --hash=sha256:{digest}" for digest in sorted(entries[requirement]))
        for requirement in requirements
    ]
    listing = folder / "wanted.txt"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [*TARGET_OPTIONS, "--dest", str(folder)]
    subprocess.run([*command, "--requirement", str(listing)], check=True)


def members(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file in a wheel. Raises ValueError for a file of `*.data/`."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
            if entry.is_dir():
                continue
            if re.match(r"[^/]+\.data/", entry.filename):
                raise ValueError(f"{wheel.name}: {entry.filename} needs an installer")
            yield entry.filename, archive.read(entry)
