"""Builds what is released beside the bundles, and SHA256SUMS over all of it.

    PYTHONPATH=agent .venv/bin/python -m packages.build --output dist/release BUNDLE…

Runs in the repository's root. The same inputs give the same bytes, but for the signature.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from packages import collection, deb, rpm, tree

SUMS = "SHA256SUMS"
FORMATS = {"deb": deb.build, "rpm": rpm.build}


def packages(root: Path, bundle: Path, output: Path, *, level: int) -> list[Path]:
    """The packages of a bundle."""
    galaxy = yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8"))
    packed = tree.make(root, bundle)
    maintainer = f"{galaxy['authors'][0]} <throughline@throughline.example>"
    return [
        build(packed, output, summary=galaxy["description"], maintainer=maintainer, level=level)
        for build in FORMATS.values()
    ]


def write_sums(output: Path, files: list[Path]) -> Path:
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    sums = output / SUMS
    sums.write_text("".join(sorted(lines, key=lambda line: line.split()[1])), encoding="utf-8")
    return sums


def sign(sums: Path, key: str) -> None:
    """A detached signature by a key of gpg's, which may ask for its passphrase."""
    command = ["gpg", "--yes", "--local-user", key, "--armor", "--detach-sign", str(sums)]
    subprocess.run(command, check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="packages.build")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--key", default="", help="of gpg, to sign SHA256SUMS")
    parser.add_argument("--level", type=int, default=6, help="of compression, from 1 to 9")
    options = parser.parse_args(arguments)
    root, output = Path.cwd(), options.output
    shutil.rmtree(output, ignore_errors=True)  # files of an earlier version
    output.mkdir(parents=True)
    try:
        made = [collection.build(root, output)]
        for bundle in options.bundles:
            made.append(Path(shutil.copy(bundle, output)))
            made += packages(root, bundle, output, level=options.level)
        sums = write_sums(output, made)
        if options.key:
            sign(sums, options.key)
    except (LookupError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print(sums.read_text(encoding="utf-8"), end="")
    said = f"signed by {options.key}" if options.key else "not signed, since SIGNING_KEY= is empty"
    print(f"release: {len(made)} files in {output}, {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
