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

PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


def target_options(arch: str) -> tuple[str, ...]:
    """pip's options for wheels of the release's own interpreter and C library."""
    return (
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={'.'.join(map(str, interpreter.VERSION))}",
        *(f"--platform={platform}_{arch}" for platform in PLATFORMS),
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


def fetch(lock: Path, arch: str, folder: Path) -> list[Path]:
    """One wheel for each requirement of the lock, sorted by name, for an architecture.

    Those that `folder` lacks are downloaded into it; it holds those of one architecture. Raises
    subprocess.CalledProcessError when pip fails or refuses a hash, LookupError when the lock names
    no wheel of a requirement for this architecture.
    """
    entries = read_lock(lock)
    folder.mkdir(parents=True, exist_ok=True)
    found = _by_digest(folder)
    if lacking := _lacking(entries, found):
        print(f"bundle: Downloading {len(lacking)} Python package(s)", flush=True)
        _download(lacking, entries, arch, folder)
        found = _by_digest(folder)
    if lacking := _lacking(entries, found):
        raise LookupError(f"{lock} has no wheel for {arch} of {', '.join(lacking)}")
    known = {digest for digests in entries.values() for digest in digests}
    return sorted(wheel for digest, wheel in found.items() if digest in known)


def _lacking(entries: dict[str, set[str]], found: dict[str, Path]) -> list[str]:
    """The requirements without a wheel."""
    return sorted(name for name, digests in entries.items() if not digests & found.keys())


def _by_digest(folder: Path) -> dict[str, Path]:
    return {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in folder.glob("*.whl")}


def _download(
    requirements: Sequence[str], entries: dict[str, set[str]], arch: str, folder: Path
) -> None:
    lines = [
        requirement + "".join(f" --hash=sha256:{digest}" for digest in sorted(entries[requirement]))
        for requirement in requirements
    ]
    listing = folder / "wanted.txt"
    listing.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [*target_options(arch), "--dest", str(folder)]
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
