"""The collection's archive: as ansible-galaxy builds it, with bytes that depend on nothing else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bundle import archive

MAX_BYTES = 20_000_000  # what Galaxy takes


def build(root: Path, output: Path) -> Path:
    """Writes the archive into the directory `output`. Raises ValueError for one that is too big."""
    galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
    with tempfile.TemporaryDirectory() as folder:
        command = [galaxy, "collection", "build", "--output-path", folder, str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (made,) = Path(folder).glob("*.tar.gz")
        files, executable = _read(made)
    # ansible-galaxy lists files in the order of the disk.
    listing = json.loads(files["FILES.json"])
    listing["files"].sort(key=lambda entry: entry["name"])
    files["FILES.json"] = _json(listing)
    manifest = json.loads(files["MANIFEST.json"])
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(
        files["FILES.json"]
    ).hexdigest()
    files["MANIFEST.json"] = _json(manifest)
    packed = archive.compress_gzip(archive.tar(files, executable=executable))
    if len(packed) > MAX_BYTES:
        raise ValueError(f"{made.name} has {len(packed)} bytes, Galaxy takes {MAX_BYTES}")
    target = output / made.name
    target.write_bytes(packed)
    return target


def _read(made: Path) -> tuple[dict[str, bytes], frozenset[str]]:
    files, executable = {}, set()
    with tarfile.open(made, "r:gz") as packed:
        for member in packed:
            content = packed.extractfile(member) if member.isfile() else None
            if content is None:
                continue
            files[member.name] = content.read()
            if member.mode & 0o100:
                executable.add(member.name)
    return files, frozenset(executable)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=4).encode()
