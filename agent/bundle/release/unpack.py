"""Check a release that was just extracted, and make it ready.

    bin/python unpack.py [--check]

1. Every file must have the SHA-256 that MANIFEST.json gives, and no other file may be there.
2. The modules are compiled, so that the agent, which may not write here, starts fast.

Afterwards the file UNPACKED exists; a second run only checks. `--check` does only step 1.
Exit codes: 0 ready, 1 refused (the reasons are on standard error).

Runs before anything of the release is trusted: standard library only.
"""

import compileall
import hashlib
import json
import os
import py_compile
import shutil
import sys
from pathlib import Path
from typing import Any

RELEASE = Path(__file__).resolve().parent
KEYS = {"version", "files"}
MARKER = "UNPACKED"


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
    return manifest


def present_files() -> set[str]:
    """Every file below the release, relative, without what step 2 adds."""
    found = set()
    for path in RELEASE.rglob("*"):
        name = path.relative_to(RELEASE)
        if "__pycache__" not in name.parts and (path.is_symlink() or not path.is_dir()):
            found.add(str(name))
    return found - {MARKER}


def check(manifest: dict[str, Any]) -> None:
    expected = dict(manifest["files"])
    present = present_files() - {"MANIFEST.json"}
    problems = [f"{path}: missing" for path in expected.keys() - present]
    problems += [f"{path}: not in MANIFEST.json" for path in present - expected.keys()]
    for path, digest in expected.items():
        file = RELEASE / path
        if path not in present:
            continue
        if file.is_symlink() or not file.is_file():
            problems.append(f"{path}: not a regular file")
        elif sha256(file) != digest:
            problems.append(f"{path}: its SHA-256 is not the manifest's")
    if problems:
        raise RefusedError("\n".join(sorted(problems)))


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
    for folder in sorted((RELEASE / "lib").glob("python*")):
        # Unchecked: the sources of a release never change, and start-up need not look at them.
        if not compileall.compile_dir(
            folder,
            quiet=2,
            force=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        ):
            raise RefusedError(f"lib/{folder.name}: a module does not compile")


def main() -> int:
    os.umask(0o022)
    marker = RELEASE / MARKER
    try:
        manifest = read_manifest()
        check(manifest)
        if "--check" in sys.argv[1:] or marker.exists():
            print(f"throughline {manifest['version']}: every file is as the manifest says")
            return 0
        compile_modules()
        replace(marker, b"")
    except (RefusedError, OSError) as error:
        print(f"unpack.py: {RELEASE} is refused:\n{error}", file=sys.stderr)
        return 1
    print(f"throughline {manifest['version']}: ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
