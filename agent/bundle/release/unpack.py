"""Check a release that was just extracted, and make it ready for this host's Python.

    bin/python unpack.py [--check]

1. Every file must have the SHA-256 that MANIFEST.json gives, and no other file may be there.
2. The gRPC extension for this minor version of Python comes out of lib/grpc.tar.xz.
3. The modules are compiled, so that the agent, which may not write here, starts fast.

Afterwards the file UNPACKED-cp3XX exists; a second run only checks. `--check` does only step 1.
Exit codes: 0 ready, 1 refused (the reasons are on standard error).

Runs before anything of the release is trusted: standard library only.
"""

import compileall
import hashlib
import importlib.util
import json
import os
import py_compile
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

RELEASE = Path(__file__).resolve().parent
ARCHIVE = "lib/grpc.tar.xz"
KEYS = {"version", "python", "files", "extensions"}
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


class RefusedError(Exception):
    """The release is not what its manifest says. The message says which file and why."""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_manifest() -> dict[str, Any]:
    try:
        manifest = json.loads((RELEASE / "MANIFEST.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefusedError(f"MANIFEST.json cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= KEYS:
        raise RefusedError(f"MANIFEST.json does not have the keys {', '.join(sorted(KEYS))}")
    if sys.version_info < tuple(manifest["python"]):
        needed = ".".join(map(str, manifest["python"]))
        raise RefusedError(f"needs Python {needed} or newer, this is {sys.version.split()[0]}")
    return manifest


def present_files() -> set[str]:
    """Every file below the release, relative, without what step 2 and 3 add."""
    found = set()
    for path in RELEASE.rglob("*"):
        name = path.relative_to(RELEASE)
        if "__pycache__" not in name.parts and (path.is_symlink() or not path.is_dir()):
            found.add(str(name))
    return {name for name in found if not name.startswith("UNPACKED-")}


def check(manifest: dict[str, Any]) -> None:
    expected = dict(manifest["files"])
    optional = {entry["path"]: entry["sha256"] for entry in manifest["extensions"].values()}
    present = present_files() - {"MANIFEST.json"}
    problems = [f"{path}: missing" for path in expected.keys() - present]
    problems += [
        f"{path}: not in MANIFEST.json" for path in present - expected.keys() - optional.keys()
    ]
    for path, digest in (optional | expected).items():
        file = RELEASE / path
        if path not in present:
            continue
        if file.is_symlink() or not file.is_file():
            problems.append(f"{path}: not a regular file")
        elif sha256(file) != digest:
            problems.append(f"{path}: its SHA-256 is not the manifest's")
    if problems:
        raise RefusedError("\n".join(sorted(problems)))


def extract_grpc(manifest: dict[str, Any]) -> str:
    """Put this Python's gRPC extension beside its package. Returns what to tell the reader."""
    entry = manifest["extensions"].get(TAG)
    if entry is None:
        return f"no gRPC extension for {TAG}: use export.otlp.protocol http/protobuf"
    target = RELEASE / entry["path"]
    if importlib.util.find_spec("_lzma") is None:
        return "this Python has no lzma module, so no gRPC: use export.otlp.protocol http/protobuf"
    try:
        content = read_member(RELEASE / ARCHIVE, target.name)
    except (tarfile.TarError, KeyError) as error:
        raise RefusedError(f"{ARCHIVE}: {error}") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise RefusedError(f"{ARCHIVE}: the SHA-256 of {target.name} is not the manifest's")
    replace(target, content)
    return f"gRPC extension for {TAG}"


def read_member(archive: Path, name: str) -> bytes:
    """One file of a tar.xz, read no further than necessary. KeyError when it is not there."""
    with tarfile.open(archive, "r|xz") as members:
        for member in members:
            reader = members.extractfile(member) if member.name == name else None
            if reader:
                return reader.read()
    raise KeyError(f"does not hold {name}")


def replace(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.chmod(0o644)
    part.replace(path)


def compile_modules() -> None:
    for cache in list((RELEASE / "lib").rglob("__pycache__")):
        shutil.rmtree(cache)
    # Unchecked: the sources of a release never change, and start-up need not look at them.
    if not compileall.compile_dir(
        RELEASE / "lib/python",
        quiet=2,
        force=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    ):
        raise RefusedError("lib/python: a module does not compile")


def main() -> int:
    os.umask(0o022)
    marker = RELEASE / f"UNPACKED-{TAG}"
    try:
        manifest = read_manifest()
        check(manifest)
        if "--check" in sys.argv[1:] or marker.exists():
            print(f"throughline {manifest['version']}: every file is as the manifest says")
            return 0
        done = extract_grpc(manifest)
        compile_modules()
        replace(marker, (done + "\n").encode())
    except (RefusedError, OSError) as error:
        print(f"unpack.py: {RELEASE} is refused:\n{error}", file=sys.stderr)
        return 1
    print(f"throughline {manifest['version']}: ready; {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
