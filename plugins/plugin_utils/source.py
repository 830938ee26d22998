# Copyright the throughline authors. SPDX-License-Identifier: Apache-2.0
"""Which bundle a host gets, from the variables throughline_bundle*: a file, or an address."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.throughline.fleet.plugins.module_utils.fetch import (
    BUNDLE_OPTIONS,
    FetchError,
    fetch,
    read_small,
)
from ansible_collections.throughline.fleet.plugins.plugin_utils.bundle import hash_once

NAME = "throughline-*-linux-{}.tar.gz"
SUMS = "SHA256SUMS"
SHA256 = re.compile(r"[0-9a-f]{64}")
FETCHERS = ("controller", "host")
OPTIONS = tuple(BUNDLE_OPTIONS)


class SourceError(Exception):
    """There is no such bundle. The message says found, required and remedy."""


@dataclass(frozen=True, slots=True)
class Source:
    """The bundle for a host. Without a `path` on the controller the host fetches it from `url`."""

    name: str
    sha256: str
    path: Path | None
    url: str | None


def find_source(options: Mapping[str, Any], architecture: str | None) -> Source:
    """The bundle for a host of an architecture (None: not known). Raises SourceError."""
    url = str(options.get("bundle_url") or "")
    keyring = options.get("bundle_keyring") or None
    wanted = wanted_sha256(options.get("bundle_sha256"), architecture)
    fetcher = options.get("bundle_fetched_by") or FETCHERS[0]
    if fetcher not in FETCHERS:
        raise SourceError(
            f"Found throughline_bundle_fetched_by {str(fetcher)[:80]!r}, required one of"
            f" {', '.join(FETCHERS)}. Remedy: correct it."
        )
    try:
        if url:
            return at_address(
                url_for(url, architecture),
                wanted,
                keyring=keyring,
                by_host=fetcher == "host",
            )
        path = find_bundle(Path(options.get("bundle") or ".").expanduser(), architecture)
        found = hash_once(path)
        if keyring:
            compare(path.name, found, signed_sha256(path.name, _beside(path), keyring))
        compare(path.name, found, wanted)
    except FetchError as error:
        raise SourceError(str(error)) from error
    return Source(path.name, found, path, None)


def wanted_sha256(value: Any, architecture: str | None) -> str | None:
    """throughline_bundle_sha256 for an architecture. Raises SourceError where it is none."""
    if isinstance(value, Mapping):
        if architecture not in value:
            raise SourceError(
                f"Found throughline_bundle_sha256 for {', '.join(map(str, value)) or 'nothing'},"
                f" required one for {architecture or 'the host'}. Remedy: add it from {SUMS}."
            )
        value = value[architecture]
    text = str(value or "").strip().lower()
    if text and not SHA256.fullmatch(text):
        raise SourceError(
            f"Found throughline_bundle_sha256 {text[:80]!r}, required 64 hexadecimal digits."
            f" Remedy: copy it from the {SUMS} of the release."
        )
    return text or None


def url_for(url: str, architecture: str | None) -> str:
    """throughline_bundle_url with the architecture of a host in place of {arch}."""
    if "{arch}" in url and architecture is None:
        raise SourceError(
            "Found {arch} in throughline_bundle_url, required the host's architecture."
            " Remedy: run the role throughline.fleet.preflight first."
        )
    return url.replace("{arch}", architecture or "")


def find_bundle(path: Path, architecture: str | None) -> Path:
    """A bundle, or the newest one of a directory for an architecture. Raises SourceError."""
    if path.is_file():
        return path
    pattern = NAME.format(architecture or "*")
    bundles = sorted(path.glob(pattern), key=lambda bundle: bundle.stat().st_mtime)
    if not bundles:
        others = sorted(bundle.name for bundle in path.glob(NAME.format("*")))
        raise SourceError(
            f"Found {', '.join(others) or 'no bundle'} at {path.resolve()}, required a file or a"
            f" directory with {pattern}. Remedy: get the bundle from the release and set"
            " throughline_bundle to it, or set throughline_bundle_url, or run `make bundle` in a"
            " checkout."
        )
    return bundles[-1]


def compare(name: str, found: str, wanted: str | None) -> None:
    """Raises SourceError for a bundle that is not the wanted one."""
    if wanted and found != wanted:
        raise SourceError(
            f"Found SHA-256 {found} of {name}, required {wanted}. Remedy: get the bundle again, or"
            f" take throughline_bundle_sha256 from the {SUMS} of its release."
        )


def at_address(url: str, wanted: str | None, *, keyring: str | None, by_host: bool) -> Source:
    """The bundle at a URL, fetched once for a fleet where the controller is to do that."""
    name, folder = url.rpartition("/")[2].partition("?")[0], url.rpartition("/")[0]
    if keyring:
        signed = signed_sha256(name, lambda file: read_small(f"{folder}/{file}"), keyring)
        compare(name, signed, wanted)
        wanted = signed
    if wanted is None:
        raise SourceError(
            "Found throughline_bundle_url alone, required its SHA-256. Remedy: set"
            f" throughline_bundle_sha256 from the {SUMS} of the release, or"
            " throughline_bundle_keyring."
        )
    if by_host:
        return Source(name, wanted, None, url)
    return Source(name, wanted, _cached(url, name, wanted), None)


def _cached(url: str, name: str, sha256: str) -> Path:
    """The file on the controller, which one of the workers of this run fetches for all."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "throughline" / sha256
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or "bundle.tar.gz")
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file() or hash_once(path) != sha256:
            fetch(url, path, sha256=sha256)
    return path


def _beside(bundle: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return (bundle.parent / name).read_bytes()
        except OSError as error:
            raise SourceError(
                f"Found no {name} beside {bundle} ({error.strerror}), required for"
                " throughline_bundle_keyring: this bundle is unsigned. Remedy: get that file of the"
                " release, too."
            ) from error

    return read


def signed_sha256(name: str, read: Callable[[str], bytes], keyring: str) -> str:
    """The SHA-256 that the signed SHA256SUMS has for a bundle. Raises SourceError."""
    gpgv = shutil.which("gpgv")
    if gpgv is None:
        raise SourceError(
            "Found no gpgv on the controller, required for throughline_bundle_keyring."
            " Remedy: install it (package gpgv, or gnupg2)."
        )
    with tempfile.TemporaryDirectory() as folder:
        for file in (SUMS, f"{SUMS}.asc"):
            (Path(folder) / file).write_bytes(read(file))
        sums = Path(folder) / SUMS
        key = Path(keyring).expanduser().resolve()
        command = [gpgv, "--keyring", str(key), f"{sums}.asc", str(sums)]
        answer = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace"
        )
        text = sums.read_text(encoding="utf-8", errors="replace")
    if answer.returncode:
        said = answer.stderr.strip().replace("\n", "; ")
        raise SourceError(
            f"Found a {SUMS} without a good signature of a key in {key}: {said}. Required one."
            " Remedy: get the files of the release again, and the key from its maintainer"
            " (gpg --export KEY > FILE)."
        )
    rows = [line.split() for line in text.splitlines()]
    found = [row[0] for row in rows if len(row) == 2 and row[1].lstrip("*") == name]
    if not found:
        raise SourceError(
            f"Found no {name} in the signed {SUMS}, required it. Remedy: keep the file's name, and"
            f" take {SUMS} from the same release."
        )
    return found[0]
