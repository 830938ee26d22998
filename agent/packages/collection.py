"""The collection's archive: as ansible-galaxy builds it, with bytes that depend on nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from bundle import archive

MAX_BYTES = 20_000_000  # what Galaxy takes


def build(root: Path, output: Path) -> Path:
    """Writes the archive into the directory `output`. Raises ValueError for one that is too big.

    It has only files that git tracks: a checkout may hold inventories and vaults of its operator.
    """
    galaxy = str(Path(sys.executable).with_name("ansible-galaxy"))
    with tempfile.TemporaryDirectory() as folder:
        tracked = Path(folder) / "tracked"
        _copy_tracked(root, tracked)
        command = [galaxy, "collection", "build", "--output-path", folder, str(tracked)]
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


def _copy_tracked(root: Path, target: Path) -> None:
    """Copies what git tracks, as it is in the checkout. Raises ValueError where there is no git."""
    answer = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached"], capture_output=True, text=True
    )
    paths = [path for path in answer.stdout.split("\0") if path]
    if answer.returncode or "galaxy.yml" not in paths:
        said = answer.stderr.strip() or "no galaxy.yml"
        raise ValueError(f"{root}: git does not say which files are tracked: {said}")
    for path in paths:
        source, copied = root / path, target / path
        if source.exists() or source.is_symlink():  # else it is deleted, and not committed yet
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copied, follow_symlinks=False)


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
