"""Pins what a bundle takes from others: writes agent/bundle/requirements.lock and debian.lock.

    PYTHONPATH=agent .venv/bin/python -m bundle.lock

The agent's Python dependencies are those of pyproject.toml, resolved for the interpreter of the
release. That one and its libraries are those of Debian's stable release, as its last point release
has them; gpgv checks what Debian has signed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from bundle import debian, interpreter
from bundle.wheels import LOCK, target_options

HEADER = """\
# The agent's Python dependencies, exact and with the SHA-256 of every wheel that the bundle uses.
# Written by: PYTHONPATH=agent .venv/bin/python -m bundle.lock
"""
DEBIAN_HEADER = """\
# The release's own interpreter and libraries: architecture, package, version, path, SHA-256.
# Written by: PYTHONPATH=agent .venv/bin/python -m bundle.lock
"""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def resolve(requirements: list[str], arch: str) -> dict[str, tuple[str, str]]:
    """Name to (version, SHA-256 of the wheel) for the release's Python on this architecture."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += [*target_options(arch), "--target", "unused"]
    output = subprocess.run(
        [*command, "--report", "-", *requirements], check=True, stdout=subprocess.PIPE
    ).stdout
    return {
        item["metadata"]["name"].lower().replace("_", "-"): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in json.loads(output)["install"]
    }


def merge(found: Iterable[dict[str, tuple[str, str]]]) -> dict[str, tuple[str, set[str]]]:
    """Name to (version, digests). Raises LookupError where architectures differ in a version."""
    merged: dict[str, tuple[str, set[str]]] = {}
    for resolved in found:
        for name, (version, digest) in resolved.items():
            known, digests = merged.setdefault(name, (version, set()))
            if known != version:
                raise LookupError(f"{name} is {known} for one architecture, {version} for another")
            digests.add(digest)
    return merged


def project_requirements() -> list[str]:
    """The dependencies of pyproject.toml without the extras, from the installed package."""
    return [line for line in metadata.requires("throughline") or [] if "extra ==" not in line]


def signed_index(suite: str, architecture: str) -> str:
    """The list of a suite's packages. Raises LookupError where it is not what Debian has signed."""
    base = f"{debian.mirror()}/dists/{suite}"
    release = debian.download(f"{base}/InRelease")
    with tempfile.NamedTemporaryFile() as file:
        file.write(release)
        file.flush()
        checked = subprocess.run(
            ["gpgv", "--quiet", "--keyring", KEYRING, "--output", "-", file.name],
            stdout=subprocess.PIPE,
        )
    if checked.returncode:
        raise LookupError(f"{base}/InRelease: gpgv refuses its signature")
    name = f"main/binary-{architecture}/Packages.xz"
    wanted = re.search(
        rf"^ ([0-9a-f]{{64}}) +\d+ {re.escape(name)}$", checked.stdout.decode(), re.M
    )
    index = debian.download(f"{base}/{name}")
    if not wanted or hashlib.sha256(index).hexdigest() != wanted[1]:
        raise LookupError(f"{base}/{name}: its SHA-256 is not the one that Debian has signed")
    return lzma.decompress(index).decode()


def packages(architecture: str) -> list[debian.Package]:
    """The packages that a release needs. Raises LookupError where Debian lacks one."""
    found: dict[str, debian.Package] = {}
    for stanza in signed_index(interpreter.SUITE, architecture).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Filename|SHA256): (.*)$", stanza, re.M))
        if fields.get("Package") in interpreter.PACKAGES:
            found[fields["Package"]] = debian.Package(
                architecture, *(fields[key] for key in ("Package", "Version", "Filename", "SHA256"))
            )
    if missing := sorted(set(interpreter.PACKAGES) - found.keys()):
        raise LookupError(f"{interpreter.SUITE} has no {', '.join(missing)} for {architecture}")
    return [found[name] for name in sorted(found)]


def main() -> int:
    wanted = project_requirements()
    merged = merge(resolve(wanted, arch) for arch in interpreter.ARCHITECTURES)
    lines = []
    for name, (version, digests) in sorted(merged.items()):
        hashes = [f"--hash=sha256:{digest}" for digest in sorted(digests)]
        lines.append(" \\\n    ".join([f"{name}=={version}", *hashes]))
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"lock: {len(lines)} packages in {LOCK}")
    rows = [
        f"{one.architecture} {one.name} {one.version} {one.path} {one.sha256}"
        for architecture in interpreter.ARCHITECTURES.values()
        for one in packages(architecture)
    ]
    debian.LOCK.write_text(DEBIAN_HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    print(f"lock: {len(rows)} packages in {debian.LOCK}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
