"""Files of Debian packages that a lock names: downloaded once, checked, and read without dpkg.

    PYTHONPATH=agent .venv/bin/python -m bundle.lock

writes the lock. No address of a mirror is written down: $THROUGHLINE_DEBIAN_MIRROR has one (as
`http://HOST/debian`), or this machine's own apt has.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

LOCK = Path(__file__).with_name("debian.lock")
MIRROR = "THROUGHLINE_DEBIAN_MIRROR"
SECONDS = 120
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True, slots=True)
class Package:
    """One binary package of the lock: where a mirror has it, and its SHA-256 in hex."""

    architecture: str  # Debian's name: amd64
    name: str
    version: str
    path: str
    sha256: str


def repositories() -> list[tuple[str, str]]:
    """Debian's repositories that apt knows here, as (label, address), such as `Debian-Security`."""
    ask = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    answer = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    rows = (line.split("|") for line in answer.splitlines())
    return [(label, address) for origin, label, address in rows if origin == "Debian"]


def mirror() -> str:
    """The address of a Debian mirror. Raises LookupError where none is known."""
    if address := os.environ.get(MIRROR):
        return address.rstrip("/")
    known: list[tuple[str, str]] = []
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        known = repositories()
    for label, address in known:
        if label == "Debian" and address.startswith("http"):
            return address.rstrip("/")
    raise LookupError(f"apt knows no Debian mirror here: set ${MIRROR} to the address of one")


def download(address: str) -> bytes:
    """What is at an address. Raises LookupError, which names it, where that cannot be had."""
    try:
        answer = requests.get(address, timeout=SECONDS)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise LookupError(f"{address}: {error}") from error
    return answer.content


def read_lock(lock: Path = LOCK) -> list[Package]:
    """The packages, in the order of the lock. Raises ValueError for a line that is not one."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    if wrong := [row for row in rows if len(row) != 5]:
        raise ValueError(f"{lock}: not a package: {' '.join(wrong[0])}")
    return [Package(*row) for row in rows]


def fetch(architecture: str, folder: Path, lock: Path = LOCK) -> dict[str, bytes]:
    """The packages of an architecture by name. Those that `folder` lacks are downloaded into it.

    Raises LookupError where a mirror has none of that name any more, or other bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, bytes] = {}
    for package in read_lock(lock):
        if package.architecture != architecture:
            continue
        kept = folder / Path(package.path).name
        if not _is(kept, package.sha256):
            print(f"bundle: Downloading {package.name} {package.version}", flush=True)
            content = download(f"{mirror()}/{package.path}")
            if hashlib.sha256(content).hexdigest() != package.sha256:
                raise LookupError(f"{package.path}: its SHA-256 is not that of {lock.name}")
            part = kept.with_suffix(".part")
            part.write_bytes(content)
            part.replace(kept)
        found[package.name] = kept.read_bytes()
    if not found:
        raise LookupError(f"{lock.name} names no package for {architecture}")
    return found


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def members(package: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each regular file of a .deb (deb(5)), without links.

    Raises ValueError for a package whose files are packed in another way than xz.
    """
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(_data(package)))) as archive:
        for member in archive:
            reader = archive.extractfile(member) if member.isfile() else None
            if reader:
                yield member.name.removeprefix("./"), reader.read()


def file(package: bytes, path: str) -> bytes:
    """A file of a .deb; `path` may be a symbolic link in the same folder. Raises LookupError."""
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(_data(package)))) as archive:
        try:
            member = archive.getmember(f"./{path}")
            if member.issym():
                member = archive.getmember(f"{member.name.rpartition('/')[0]}/{member.linkname}")
            reader = archive.extractfile(member)
        except KeyError as error:
            raise LookupError(f"a package of {LOCK.name} has no {path}") from error
        if reader is None:
            raise LookupError(f"a package of {LOCK.name} has no regular file {path}")
        return reader.read()


def _data(package: bytes) -> bytes:
    """The member data.tar.xz of the ar archive that a .deb is."""
    if not package.startswith(_AR_MAGIC):
        raise ValueError("not a Debian package")
    at = len(_AR_MAGIC)
    while at + _AR_HEADER <= len(package):
        name = package[at : at + 16].decode().rstrip(" /")
        size = int(package[at + 48 : at + 58])
        at += _AR_HEADER
        if name == "data.tar.xz":
            return package[at : at + size]
        at += size + size % 2
    raise ValueError("a Debian package without data.tar.xz")
