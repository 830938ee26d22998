"""Builds dist/throughline-<version>-linux-<architecture>.tar.gz.

    PYTHONPATH=agent .venv/bin/python -m bundle.build --version V --arch ARCHITECTURE --output FILE

Runs in the repository's root, after `make bpf`. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from bundle import archive, contents, interpreter, wheels

MAX_BYTES = 25_000_000

# Copied as they are: path in the repository, path in the release.
PLAIN_FILES = (
    ("LICENSE", "LICENSE"),
    ("bpf/LICENSE", "bpf/LICENSE"),
    ("agent/bundle/release/bin/python", "bin/python"),
    ("agent/bundle/release/bin/throughline", "bin/throughline"),
    ("agent/bundle/release/lib/opener.py", "lib/opener.py"),
    ("agent/bundle/release/lib/start.py", "lib/start.py"),
    ("agent/bundle/release/share/node/context.cjs", "share/node/context.cjs"),
    ("agent/bundle/release/unpack.py", "unpack.py"),
    ("agent/systemd/throughline-probes.service", "systemd/throughline-probes.service"),
    ("agent/systemd/throughline-probes.socket", "systemd/throughline-probes.socket"),
    ("agent/systemd/throughline.service", "systemd/throughline.service"),
)
EXECUTABLE = frozenset(
    {"bin/python", "bin/throughline", "lib/runtime/python3", "lib/runtime/throughline"}
)
# A variant for kernels before 5.15 is made for this architecture only, and not of these objects.
LEGACY_ARCH = "x86_64"
FEXIT = ("restore", "unix")  # these have another form for kernels before 6.3
ONE_VARIANT = ("restore", "unix", "go", "go_write", "python", "proxies")


def collect(root: Path, arch: str) -> dict[str, bytes]:
    """The files of an architecture's release, without the manifest."""
    names_of = (source.name.partition(".")[0] for source in (root / "bpf").glob("*/*.bpf.c"))
    sources = sorted(names_of)
    legacy = [name for name in sources if name not in ONE_VARIANT] if arch == LEGACY_ARCH else []
    names = [
        *sources,
        *(f"{name}-fexit" for name in FEXIT),
        *(f"{name}-legacy" for name in legacy),
    ]
    objects = [root / f"build/bpf-{arch}" / f"{name}.bpf.o" for name in names]
    if missing := [path.name for path in objects if not path.exists()]:
        raise LookupError(f"not built yet: {', '.join(missing)}; run `make bpf`")
    files = contents.python_packages(wheels.fetch(wheels.LOCK, arch, root / f"build/wheels-{arch}"))
    files |= interpreter.collect(arch, root / "build/debian")
    files |= {target: (root / source).read_bytes() for source, target in PLAIN_FILES}
    files |= {f"bpf/{path.name}": path.read_bytes() for path in objects}
    files |= dict(contents.agent_package(root / "agent/throughline"))
    return files


def manifest(version: str, arch: str, files: dict[str, bytes]) -> dict[str, object]:
    """The files of the release. Raises ValueError where one needs a newer glibc than it brings."""
    brought = contents.needed_glibc(files["lib/runtime/libc.so.6"])
    for path, content in files.items():
        if contents.needed_glibc(content) > brought:
            raise ValueError(f"{path} needs a newer glibc than the release's own")
    return {
        "version": version,
        "arch": arch,
        "python": list(interpreter.VERSION),
        "files": {path: _sha256(content) for path, content in sorted(files.items())},
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bundle.build")
    parser.add_argument("--version", required=True)
    parser.add_argument("--arch", choices=interpreter.ARCHITECTURES, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        files = collect(Path.cwd(), options.arch)
        listing = json.dumps(manifest(options.version, options.arch, files), indent=1)
    except (LookupError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    files["MANIFEST.json"] = listing.encode() + b"\n"
    bundle = archive.compress_gzip(archive.tar(files, executable=EXECUTABLE))
    if len(bundle) > MAX_BYTES:
        print(f"bundle: {len(bundle)} bytes, the limit is {MAX_BYTES}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    part = options.output.with_suffix(".part")
    part.write_bytes(bundle)
    part.replace(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
