"""Builds dist/throughline-<version>-linux-x86_64.tar.gz.

    PYTHONPATH=agent .venv/bin/python -m bundle.build --output FILE

Runs in the repository's root, after `make bpf`. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

from bundle import archive, contents, wheels

MAX_BYTES = 25_000_000
ARCH = "x86_64"
GRPC_ARCHIVE = "lib/grpc.tar.xz"

# Copied as they are: path in the repository, path in the release.
PLAIN_FILES = (
    ("LICENSE", "LICENSE"),
    ("bpf/LICENSE", "bpf/LICENSE"),
    ("agent/bundle/release/bin/python", "bin/python"),
    ("agent/bundle/release/bin/throughline", "bin/throughline"),
    ("agent/bundle/release/lib/start.py", "lib/start.py"),
    ("agent/bundle/release/share/node/context.cjs", "share/node/context.cjs"),
    ("agent/bundle/release/unpack.py", "unpack.py"),
    ("agent/systemd/throughline.service", "systemd/throughline.service"),
)
EXECUTABLE = frozenset({"bin/python", "bin/throughline"})
# Objects without a variant for kernels before 5.15: they need a newer kernel.
ONE_VARIANT = ("restore", "unix", "go", "go_write", "python", "proxies")


def collect(root: Path) -> tuple[dict[str, bytes], dict[str, tuple[str, bytes]]]:
    """The files of the release, without the manifest, and the gRPC extensions by Python version."""
    names_of = (source.name.partition(".")[0] for source in (root / "bpf").glob("*/*.bpf.c"))
    sources = sorted(names_of)
    names = [*sources, *(f"{name}-legacy" for name in sources if name not in ONE_VARIANT)]
    objects = [root / "build/bpf" / f"{name}.bpf.o" for name in names]
    if missing := [path.name for path in objects if not path.exists()]:
        raise LookupError(f"not built yet: {', '.join(missing)}; run `make bpf`")
    locked = wheels.fetch(wheels.LOCK, root / "build/wheels")
    files, extensions = contents.python_packages(locked)
    files |= {target: (root / source).read_bytes() for source, target in PLAIN_FILES}
    files |= {f"bpf/{path.name}": path.read_bytes() for path in objects}
    files |= dict(contents.agent_package(root / "agent/throughline"))
    files |= dict(contents.native_libraries())
    print(
        f"bundle: Compressing the gRPC extensions for {', '.join(sorted(extensions))}", flush=True
    )
    members = {Path(path).name: content for path, content in extensions.values()}
    files[GRPC_ARCHIVE] = archive.compress_xz(archive.tar(members))
    return files, extensions


def manifest(
    version: str, files: dict[str, bytes], extensions: dict[str, tuple[str, bytes]]
) -> dict[str, object]:
    """The files of the release, and the oldest Python and glibc that it runs with."""
    shared = {path: content for path, content in files.items() if ".so" in Path(path).suffixes}
    shared |= dict(extensions.values())
    path, glibc = max(
        ((path, contents.needed_glibc(content)) for path, content in shared.items()),
        key=lambda item: item[1],
    )
    if glibc > contents.GLIBC_LIMIT:
        raise ValueError(f"{path} needs glibc {glibc}, the limit is {contents.GLIBC_LIMIT}")
    return {
        "version": version,
        "arch": ARCH,
        "python": [3, min(wheels.PYTHON_MINORS)],
        "glibc": list(glibc),
        "files": {path: _sha256(content) for path, content in sorted(files.items())},
        "extensions": {
            tag: {"path": path, "sha256": _sha256(content)}
            for tag, (path, content) in sorted(extensions.items())
        },
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bundle.build")
    parser.add_argument("--version", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        files, extensions = collect(Path.cwd())
        listing = json.dumps(manifest(options.version, files, extensions), indent=1)
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
